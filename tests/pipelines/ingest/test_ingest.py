"""Ingest end to end on Ray: every row ends as an image or with a reason, and the bytes depend on the input alone."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.pipelines.ingest.shard import ShardJob, make_shard
from pairloom.pipelines.sources.source import Piece
from pairloom.schemas.data_set.manifest import load_manifest, resolve
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import make_uid, read_table
from pairloom.schemas.errors import InputError, ShardError, StorageError
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of
from tests.support.http_server import TestServer, serve
from tests.support.ingest_builder import (
    NUM_IMAGES,
    changes,
    check_offsets,
    check_webdataset,
    files_of,
    make_recipe,
    read_rows,
    url_rows,
    url_source,
    write_csv,
    write_tar,
)


def test_urls_become_shards(
    tmp_path: Path, image_server: TestServer, pages: dict[str, bytes], ray_session: None
) -> None:
    names = [f"{index}.jpg" for index in range(NUM_IMAGES)]
    table = write_csv(tmp_path / "urls.csv", url_rows(image_server, names))
    recipe = make_recipe(tmp_path / "out", url_source(table, keep_columns=["license"]), image={"size": 100})
    folder = ingest(recipe)
    manifest = load_manifest(folder)
    assert [shard.num_samples for shard in manifest.shards] == [8, 8, 8, 6]
    assert manifest.drop_counts == {}
    assert resolve(str(tmp_path / "out/raw/main")) == folder
    rows = read_rows(folder)
    assert [row["url"] for row in rows] == [f"{image_server.url}/files/{name}" for name in names], "input order"
    for index, row in enumerate(rows):
        assert row["uid"] == make_uid(row["url"], row["caption"])
        assert (row["status"], row["license"], row["mime_type"]) == ("success", f"cc-{index}", "image/jpeg")
        assert (row["original_width"], row["original_height"], row["height"]) == (300 + index, 280, 100)
    check_offsets(folder, manifest, rows)
    check_webdataset(folder, manifest, rows)
    before = changes(tmp_path / "out")
    assert ingest(recipe, before_work=lambda: pytest.fail("there is no work")) == folder
    assert changes(tmp_path / "out") == before


def test_every_row_ends_with_an_image_or_a_reason(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    files = f"{image_server.url}/files"
    rows = [
        (f"{files}/0.jpg", "fine", None),
        (f"{files}/none.jpg", "gone", "http_not_found"),
        (f"{files}/page.jpg", "a page called .jpg", "not_an_image"),
        (f"{files}/half.jpg", "truncated on the server", "decode_error"),
        (f"{image_server.url}/truncated/1.jpg", "truncated on the way", "truncated_body"),
        (f"{files}/dot.png", "one pixel is an image", None),
        (f"{files}/bomb.png", "too large", "too_many_pixels"),
        (f"{files}/2.jpg", "", "empty_caption"),
        (f"{files}/2.jpg", " \0 ", "empty_caption"),
        (f"{files}/2.jpg", "x" * 10_001, "caption_too_long"),
        ("", "no URL", "invalid_url"),
        ("nonsense", "no URL", "invalid_url"),
        (f"{image_server.url}/slow/5/1.jpg", "slow", "timeout"),
        (f"{image_server.url}/endless", "endless", "too_many_bytes"),
        (f"{image_server.url}/robots_tag/noai/1.jpg", "keep out", "robots_directive"),
        ("http://no-such-host.invalid/x.jpg", "nowhere", "dns_error"),
        (f"{files}/0.jpg", "fine", "duplicate_row"),
        (f"{files}/0.jpg", "the same image, another caption", None),
        (f"{files}/1.jpg", "nul\0 inside", None),
        (f"{image_server.url}/redirect/3/4.jpg", "moved", None),
    ]
    table = tmp_path / "urls.jsonl"
    table.write_text("".join(json.dumps({"url": url, "caption": caption}) + "\n" for url, caption, _ in rows))
    recipe = make_recipe(tmp_path, url_source(table), max_caption_chars=10_000, fetch={"max_bytes": 1_000_000})
    folder = ingest(recipe)
    found = read_rows(folder)
    assert [row["drop_reason"] for row in found] == [reason for *_, reason in rows]
    for row in found:
        assert (row["status"] == "success") == (row["drop_reason"] is None) == (row["key"] is not None)
        assert bool(row["error_message"]) == (row["drop_reason"] is not None)
    assert found[18]["caption"] == "nul inside"
    counts = load_manifest(folder).drop_counts
    assert sum(counts.values()) == len([row for row in found if row["drop_reason"]])
    assert (counts["empty_caption"], counts["invalid_url"]) == (2, 2)


def test_small_images_are_dropped_when_asked(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    table = write_csv(tmp_path / "urls.csv", url_rows(image_server, ["dot.png", "0.jpg"]))
    rows = read_rows(ingest(make_recipe(tmp_path, url_source(table), image={"min_side": 200})))
    assert [row["drop_reason"] for row in rows] == ["too_small", None]


def test_new_files_become_a_segment(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    rows = url_rows(image_server, [f"{index}.jpg" for index in range(NUM_IMAGES)])
    urls = tmp_path / "urls"
    urls.mkdir()
    write_csv(urls / "b.csv", rows[:12])
    recipe = make_recipe(tmp_path, url_source(urls))
    folder = ingest(recipe)
    before = load_manifest(folder)
    old = changes(Path(folder) / "0000")
    write_csv(urls / "a.csv", [*rows[20:25], rows[3]])
    assert ingest(recipe) == folder
    manifest = load_manifest(folder)
    assert manifest.shards[:2] == before.shards
    assert [shard.num_rows for shard in manifest.shards] == [8, 4, 6]
    assert (before.generation, manifest.generation) == (0, 1)
    assert manifest.hash() != before.hash()
    assert old.items() <= {**changes(Path(folder) / "0000"), str(Path(folder) / "0000"): 0}.items() | old.items()
    assert all(changes(Path(folder) / "0000")[path] == time_ns for path, time_ns in old.items() if "." in path[-9:])
    assert read_rows(folder)[-1]["drop_reason"] == "duplicate_row", "of a row of the first segment"
    write_csv(urls / "b.csv", rows[:11])
    with pytest.raises(InputError, match=r"b\.csv: has changed since it was ingested"):
        ingest(recipe)
    (urls / "b.csv").unlink()
    with pytest.raises(InputError, match=r"b\.csv: was ingested and is no longer part"):
        ingest(recipe)


def test_bytes_do_not_depend_on_the_way(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    """One shard at a time with two requests, or all shards at once with retries, give the same files."""
    names = [f"{index}.jpg" for index in range(NUM_IMAGES)]
    urls = [f"{image_server.url}/slow/{0.3 if index % 7 == 0 else 0}/{name}" for index, name in enumerate(names)]
    rows = [
        {"url": url, "caption": f"c {index}"} for index, url in enumerate([*urls, f"{image_server.url}/files/none"])
    ]
    table = write_csv(tmp_path / "urls.csv", rows)
    slow = make_recipe(tmp_path / "slow", url_source(table), fetch={"concurrency": 1, "timeout_s": 5})
    fast = make_recipe(tmp_path / "fast", url_source(table), fetch={"concurrency": 64, "timeout_s": 6})
    first, second = ingest(slow), ingest(fast)
    assert Path(first).name == Path(second).name, "fetch settings are no part of the hash"
    assert files_of(first) == files_of(second)
    parquet = Path(first) / "0000/0000001.parquet"
    parquet.unlink()
    (Path(first) / "manifest.json").unlink()
    (Path(first) / "0000/.0000001.tar.dead.tmp").write_bytes(b"left by a killed worker")
    shutil.rmtree(Path(first) / "uids")
    ingest(slow)
    assert files_of(first) == files_of(second), "resumed by shard"
    assert not list(Path(first).rglob("*.tmp"))


def test_a_dead_network_does_not_finish_a_shard(tmp_path: Path, ray_session: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        rows = [{"url": f"{address}/{index}.jpg", "caption": f"c {index}"} for index in range(25)]
        rows.append({"url": "nonsense", "caption": "x"})
        source = url_source(write_csv(tmp_path / "urls.csv", rows))
        settings = {"obey_robots_txt": False, "retries": 0, "timeout_s": 0.2, "outage_patience_s": 0.1}
        with pytest.raises(ShardError, match="none of 25 images could be fetched"):
            ingest(make_recipe(tmp_path, source, samples_per_shard=50, fetch=settings))
        assert not list((tmp_path / "raw").rglob("000*/*.parquet"))
        settings["outage_patience_s"] = 0.0
        folder = ingest(make_recipe(tmp_path, source, samples_per_shard=50, fetch=settings))
    assert load_manifest(folder).drop_counts == {"timeout": 25, "invalid_url": 1}, "the way out that the error names"


def test_flickr8k_over_http(tmp_path: Path, ray_session: None, shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("flickr8k")
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:600]
    with serve(folder) as server:
        rows = [{"url": f"{server.url}/files/{pair['image']}", "caption": pair["captions"][0]} for pair in pairs]
        table = write_csv(tmp_path / "urls.csv", rows)
        raw = ingest(make_recipe(tmp_path, url_source(table), samples_per_shard=200, image={"size": 128}))
        assert server.num_connections <= 2 * 32
    manifest, found = load_manifest(raw), read_rows(raw)
    assert manifest.num_samples == 600
    assert {min(row["width"], row["height"]) for row in found} == {128}
    check_offsets(raw, manifest, found)


def test_strange_images_over_http(tmp_path: Path, ray_session: None, shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("odd_images")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with serve(folder) as server:
        rows = [{"url": f"{server.url}/files/{name}", "caption": name} for name in names]
        table = write_csv(tmp_path / "urls.csv", rows)
        raw = ingest(make_recipe(tmp_path, url_source(table), samples_per_shard=400, fetch={"timeout_s": 30}))
    found = read_rows(raw)
    assert [row["caption"] for row in found] == names
    assert load_manifest(raw).num_samples > 600
    assert {row["drop_reason"] for row in found} <= {None, "not_an_image", "decode_error", "too_many_pixels",
                                                     "unsupported_format"}  # fmt: skip
    check_offsets(raw, load_manifest(raw), found)


def test_a_full_disk_is_one_line(tmp_path: Path, pages: dict[str, bytes], ray_session: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (tmp_path / "images").mkdir()
        for index in range(200):
            (tmp_path / f"images/{index}.jpg").write_bytes(pages[f"{index % NUM_IMAGES}.jpg"])
            (tmp_path / f"images/{index}.txt").write_text(f"picture {index}")
        recipe = make_recipe(small / "out", {"kind": "folder", "path": str(tmp_path / "images")}, samples_per_shard=200)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            ingest(recipe)
        assert "\n" not in str(caught.value)
        assert not list(small.rglob("*.tar"))
    finally:
        subprocess.run(["umount", "-l", small], check=True)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import ray
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.pipelines.ingest.ingest import ingest
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
ingest(load_recipe(sys.argv[2], CurateRecipe))
"""


@pytest.mark.slow
def test_killed_midway_and_run_again_gives_the_same_bytes(
    tmp_path: Path, image_server: TestServer, ray_session: None
) -> None:
    rows = url_rows(image_server, [f"{index % NUM_IMAGES}.jpg" for index in range(120)])
    for row in rows:
        row["url"] = row["url"].replace("/files/", "/slow/0.1/")
    table = write_csv(tmp_path / "urls.csv", rows)
    recipes = [
        make_recipe(tmp_path / name, url_source(table), fetch={"concurrency": 2}) for name in ("killed", "whole")
    ]
    (tmp_path / "recipe.json").write_text(recipes[0].model_dump_json())
    repository = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", KILLED, repository, str(tmp_path / "recipe.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "raw" / "main"
    deadline = time.monotonic() + 60
    while not 2 <= len(list(folder.glob("*/0000/*.parquet"))) < 15 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    num_done = len(list(folder.glob("*/0000/*.parquet")))
    assert 2 <= num_done < 15
    assert not list(folder.glob("*/manifest.json"))
    killed, whole = ingest(recipes[0]), ingest(recipes[1])
    assert files_of(killed) == files_of(whole)


def test_object_storage(tmp_path: Path, image_server: TestServer, pages: dict[str, bytes]) -> None:
    """Without Ray: memory:// is local to a process. The tar is named by its content; the table names the tar."""
    rows = url_rows(image_server, ["0.jpg", "none.jpg", "1.jpg"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    recipe = make_recipe(tmp_path, url_source(tmp_path / "a.parquet"))
    path = str(tmp_path / "a.parquet")
    folder = f"memory://{tmp_path.name}/raw"
    job = ShardJob(recipe.source, recipe.ingest, folder, 5, (Piece(path, path, 0, 3),))
    result = make_shard(job)
    assert result.entry.url == f"{folder}/0000/0000005-{str(result.entry.sha256)[:8]}.tar"
    assert sha256_of(result.entry.url) == result.entry.sha256
    assert make_shard(job) == result, "done already"
    table = read_table(f"{folder}/0000/0000005.parquet").to_pylist()
    data = ShardReader(result.entry.url).read(table[2]["offset"], table[2]["num_bytes"])
    assert Image.open(io.BytesIO(data)).size == (table[2]["width"], table[2]["height"])
    tar = f"memory://{tmp_path.name}/foreign.tar"
    with open(write_tar(tmp_path / "x.tar", [("0.jpg", pages["0.jpg"]), ("0.txt", b"x")]), "rb") as file:
        storage.put_bytes(tar, file.read())
    adopting = make_recipe(tmp_path, {"kind": "webdataset", "path": tar})
    adopted = make_shard(ShardJob(adopting.source, adopting.ingest, f"{folder}2", 0, (Piece(tar, tar),)))
    [row] = read_table(f"{folder}2/0000/0000000.parquet").to_pylist()
    assert ShardReader(str(adopted.entry.url)).read(row["offset"], row["num_bytes"]) == pages["0.jpg"]
