"""Ingest end to end on Ray: any source becomes raw shards, every row has its end, and bytes depend on nothing else."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from PIL import Image

from pipelines.duplicate_rows import find_duplicate_rows, save_uids
from pipelines.ingest import ingest
from schemas.curate_recipe import CurateRecipe
from schemas.errors import InputError, RecipeError, ShardError, StorageError, UserError
from schemas.manifest import Manifest, load_manifest, resolve, tar_url
from schemas.sample import make_uid
from schemas.shard import ShardReader
from tests.http_server import TestServer, serve
from tests.test_image import encoded, photo, png_header

NUM_IMAGES = 30


@pytest.fixture(scope="module")
def pages() -> dict[str, bytes]:
    """Images by name, and what the web calls images."""
    images = {f"{index}.jpg": encoded(photo(300 + index, 280, index)) for index in range(NUM_IMAGES)}
    return {**images, "page.jpg": b"<!DOCTYPE html><html>gone</html>", "half.jpg": images["3.jpg"][:5000],
            "dot.png": encoded(photo(1, 1), "PNG"), "bomb.png": png_header(20_000, 20_000)}  # fmt: skip


@pytest.fixture(scope="module")
def server(pages: dict[str, bytes]) -> Iterator[TestServer]:
    with serve(pages=pages) as running:
        yield running


def make_recipe(root: Path, source: dict[str, Any], **ingest_settings: Any) -> CurateRecipe:
    fetch = {"allow_private_addresses": True, "timeout_s": 2, "retries": 1, **ingest_settings.pop("fetch", {})}
    settings = {"samples_per_shard": 8, "fetch": fetch, **ingest_settings}
    return CurateRecipe.model_validate({"root": str(root), "source": source, "ingest": settings})


def url_rows(server: TestServer, names: Sequence[str]) -> list[dict[str, str]]:
    return [{"url": f"{server.url}/files/{name}", "caption": f"picture {index}, {name}", "license": f"cc-{index}"}
            for index, name in enumerate(names)]  # fmt: skip


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def url_source(path: Path | list[str], **settings: Any) -> dict[str, Any]:
    return {"kind": "url_table", "path": path if isinstance(path, list) else str(path), **settings}


def read_rows(folder: str) -> list[dict[str, Any]]:
    manifest = load_manifest(folder)
    tables = [pq.read_table(f"{folder}/{shard.name}.parquet") for shard in manifest.shards]
    return [row for table in tables for row in table.to_pylist()]


def files_of(folder: str | Path) -> dict[str, bytes]:
    """What must be equal between runs: everything but times and scratch."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and not path.name.endswith("_stats.json") and not path.name.startswith(".")
            and "segments" not in path.parts}  # fmt: skip


def changes(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_urls_become_shards(tmp_path: Path, server: TestServer, pages: dict[str, bytes], ray_session: None) -> None:
    names = [f"{index}.jpg" for index in range(NUM_IMAGES)]
    table = write_csv(tmp_path / "urls.csv", url_rows(server, names))
    recipe = make_recipe(tmp_path / "out", url_source(table, keep_columns=["license"]), image={"size": 100})
    folder = ingest(recipe)
    manifest = load_manifest(folder)
    assert [shard.num_samples for shard in manifest.shards] == [8, 8, 8, 6]
    assert manifest.drop_counts == {}
    assert resolve(str(tmp_path / "out/raw/main")) == folder
    rows = read_rows(folder)
    assert [row["url"] for row in rows] == [f"{server.url}/files/{name}" for name in names], "input order"
    for index, row in enumerate(rows):
        assert row["uid"] == make_uid(row["url"], row["caption"])
        assert (row["status"], row["license"], row["mime_type"]) == ("success", f"cc-{index}", "image/jpeg")
        assert (row["original_width"], row["original_height"], row["height"]) == (300 + index, 280, 100)
    check_offsets(folder, manifest, rows)
    check_webdataset(folder, manifest, rows)
    before = changes(tmp_path / "out")
    assert ingest(recipe, before_work=lambda: pytest.fail("there is no work")) == folder
    assert changes(tmp_path / "out") == before


def check_offsets(folder: str, manifest: Manifest, rows: Sequence[dict[str, Any]]) -> None:
    place = iter(rows)
    for shard in manifest.shards:
        reader = ShardReader(tar_url(folder, shard))
        for row in [next(place) for _ in range(shard.num_rows)]:
            if row["status"] == "success":
                data = reader.read(row["offset"], row["num_bytes"])
                assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"])
        reader.close()


def check_webdataset(folder: str, manifest: Manifest, rows: Sequence[dict[str, Any]]) -> None:
    urls = [tar_url(folder, shard) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    kept = [row for row in rows if row["status"] == "success"]
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in kept]
    for sample, row in zip(samples, kept, strict=True):
        assert sample["txt"].decode() == row["caption"]
        fields = json.loads(sample["json"])
        assert (fields["uid"], fields["url"], fields["license"]) == (row["uid"], row["url"], row["license"])


def test_every_row_ends_with_an_image_or_a_reason(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    files = f"{server.url}/files"
    rows = [
        (f"{files}/0.jpg", "fine", None),
        (f"{files}/none.jpg", "gone", "http_not_found"),
        (f"{files}/page.jpg", "a page called .jpg", "not_an_image"),
        (f"{files}/half.jpg", "truncated on the server", "decode_error"),
        (f"{server.url}/truncated/1.jpg", "truncated on the way", "truncated_body"),
        (f"{files}/dot.png", "one pixel is an image", None),
        (f"{files}/bomb.png", "too large", "too_many_pixels"),
        (f"{files}/2.jpg", "", "empty_caption"),
        (f"{files}/2.jpg", " \0 ", "empty_caption"),
        (f"{files}/2.jpg", "x" * 10_001, "caption_too_long"),
        ("", "no URL", "invalid_url"),
        ("nonsense", "no URL", "invalid_url"),
        (f"{server.url}/slow/5/1.jpg", "slow", "timeout"),
        (f"{server.url}/endless", "endless", "too_many_bytes"),
        (f"{server.url}/robots_tag/noai/1.jpg", "keep out", "robots_directive"),
        ("http://no-such-host.invalid/x.jpg", "nowhere", "dns_error"),
        (f"{files}/0.jpg", "fine", "duplicate_row"),
        (f"{files}/0.jpg", "the same image, another caption", None),
        (f"{files}/1.jpg", "nul\0 inside", None),
        (f"{server.url}/redirect/3/4.jpg", "moved", None),
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


def test_small_images_are_dropped_when_asked(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    table = write_csv(tmp_path / "urls.csv", url_rows(server, ["dot.png", "0.jpg"]))
    rows = read_rows(ingest(make_recipe(tmp_path, url_source(table), image={"min_side": 200})))
    assert [row["drop_reason"] for row in rows] == ["too_small", None]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_table_format_gives_the_same(
    tmp_path: Path, server: TestServer, ray_session: None, kind: str, packing: str
) -> None:
    rows = url_rows(server, ["0.jpg", "none.jpg", "1.jpg"])
    rows[2]["caption"] = 'quotes ", commas, tabs\tand\nlines, ünïcode ☃'
    path = tmp_path / f"urls.{kind}{packing}"
    sink = io.StringIO()
    if kind in ("csv", "tsv"):
        data = write_csv(tmp_path / "plain", rows, "," if kind == "csv" else "\t").read_bytes()
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plain")
        data = (tmp_path / "plain").read_bytes()
    else:
        sink.write(json.dumps(rows, indent=1) if kind == "json" else "\n".join(json.dumps(row) for row in rows))
        data = sink.getvalue().encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    path.write_bytes(pack(data))
    found = read_rows(ingest(make_recipe(tmp_path / "out", url_source(path, keep_columns=["license"]))))
    assert [(row["caption"], row["drop_reason"], row["license"]) for row in found] == [
        (rows[0]["caption"], None, "cc-0"), (rows[1]["caption"], "http_not_found", "cc-1"),
        (rows[2]["caption"].replace("\t", "\t"), None, "cc-2")]  # fmt: skip


def test_text_that_is_no_utf8(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    url = f"{server.url}/files/0.jpg".encode()
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfurl,caption\n" + url + b",caf\xe9\n" + url + b",fine\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"url": "' + url + b'", "caption": "lone \\ud800 half"}\n{"url": broken\n[]\n')
    bad = pa.array([url.decode()]), pa.array([b"caf\xe9 again"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"url": bad[0], "caption": bad[1]}), tmp_path / "c.parquet")
    folder = ingest(make_recipe(tmp_path / "out", url_source(tmp_path / "*.*")))
    found = [(row["caption"], row["drop_reason"]) for row in read_rows(folder)]
    assert found == [("caf\ufffd", None), ("fine", None), ("lone ? half", None), (None, "invalid_url"),
                     (None, "invalid_url"), ("caf\ufffd again", None)]  # fmt: skip
    assert "line 2: not JSON" in read_rows(folder)[3]["error_message"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, ray_session: None, kind: str) -> None:
    rows = [{"URL": "http://a.org", "captions": "x"}]
    path = tmp_path / f"urls.{kind}"
    if kind == "csv":
        write_csv(path, rows)
    elif kind == "jsonl":
        path.write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError) as caught:
        ingest(make_recipe(tmp_path / "out", url_source(path, url_column="URL")))
    message = str(caught.value)
    assert "no column caption" in message
    assert str(path) in message
    assert "URL, captions" in message
    assert "did you mean captions?" in message
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", b"this is not gzip", "cannot be read"),
        ("a.csv.zst", b"this is not zstd", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"url,caption\n" + b"x,y\n" * 9999)[:-20], "cannot be read"),
        ("a.csv.zst", zstandard.ZstdCompressor().compress(b"url,caption\n" + os.urandom(9999))[:-20], "cannot be read"),
        ("a.parquet.gz", b"this is not gzip", "cannot be read"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"url,caption\n", "no rows"),
        ("a.json", b'[{"url": "x", "caption": "y"}, ', "not a JSON array"),
        ("a.parquet", b"PAR1 not parquet", "not a readable parquet table"),
        ("a.xlsx", b"", "holds no csv, tsv, json, jsonl or parquet table"),
    ],
)
def test_unreadable_files_are_the_users_to_fix(
    tmp_path: Path, ray_session: None, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        ingest(make_recipe(tmp_path / "out", url_source(tmp_path / name)))


def test_wrong_sources(tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        ingest(make_recipe(tmp_path, url_source(tmp_path / "missing.csv")))
    table = write_csv(tmp_path / "a.csv", [{"url": "x", "caption": "y", "width": 3}])
    with pytest.raises(RecipeError, match="width is a column of every raw table"):
        ingest(make_recipe(tmp_path, url_source(table, keep_columns=["width"])))
    with pytest.raises(InputError, match="no column licence"):
        ingest(make_recipe(tmp_path, url_source(table, keep_columns=["licence"])))


def test_types_of_kept_columns(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    url = f"{server.url}/files/0.jpg"
    table = pa.table({"url": [url], "caption": ["x"], "score": pa.array([0.5], pa.float32()),
                      "tags": [["a", "b"]], "kind": pa.array(["photo"]).dictionary_encode()})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    source = url_source(tmp_path / "a.parquet", keep_columns=["score", "tags", "kind"])
    [row] = read_rows(ingest(make_recipe(tmp_path / "out", source)))
    assert (row["score"], row["tags"], row["kind"]) == (0.5, ["a", "b"], "photo")
    write_csv(tmp_path / "b.csv", [{"url": url, "caption": "y", "score": 1, "tags": "", "kind": ""}])
    with pytest.raises(InputError, match=r"b\.csv: column score is string, in other files float"):
        ingest(make_recipe(tmp_path / "out2", {**source, "path": str(tmp_path / "*.*")}))


def test_large_row_groups_are_read_in_slices(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    rows = url_rows(server, [f"{index % NUM_IMAGES}.jpg" for index in range(100)])
    pq.write_table(pa.Table.from_pylist(rows[:70]), tmp_path / "a.parquet", row_group_size=30)
    pq.write_table(pa.Table.from_pylist([]).from_pylist(rows[:0], pa.Table.from_pylist(rows).schema),
                   tmp_path / "b.parquet")  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows[70:]), tmp_path / "c.parquet", row_group_size=4)
    folder = ingest(make_recipe(tmp_path / "out", url_source(tmp_path), samples_per_shard=9))
    assert [row["caption"] for row in read_rows(folder)] == [row["caption"] for row in rows]


def test_uids_of_the_source_stay(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    uid = "0123456789abcdef0123456789abcdef"
    rows = [{**row, "uid": given} for row, given in zip(url_rows(server, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
                                                        [uid, uid, "user 7", "user 7"], strict=True)]  # fmt: skip
    found = read_rows(ingest(make_recipe(tmp_path, url_source(write_csv(tmp_path / "a.csv", rows)))))
    assert [row["uid"] for row in found[:2]] == [uid, uid]
    assert [row["drop_reason"] for row in found] == [None, "duplicate_row", None, None]


def test_new_files_become_a_segment(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    rows = url_rows(server, [f"{index}.jpg" for index in range(NUM_IMAGES)])
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


def test_bytes_do_not_depend_on_the_way(tmp_path: Path, server: TestServer, ray_session: None) -> None:
    """One shard after the other with two requests at once, or all at once with retries: the same files."""
    names = [f"{index}.jpg" for index in range(NUM_IMAGES)]
    urls = [f"{server.url}/slow/{0.3 if index % 7 == 0 else 0}/{name}" for index, name in enumerate(names)]
    rows = [{"url": url, "caption": f"c {index}"} for index, url in enumerate([*urls, f"{server.url}/files/none"])]
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
    rows = [{"url": f"http://127.0.0.1:1/{index}.jpg", "caption": f"c {index}"} for index in range(25)]
    rows.append({"url": "nonsense", "caption": "x"})
    table = write_csv(tmp_path / "urls.csv", rows)
    settings = {"obey_robots_txt": False, "retries": 0}
    with pytest.raises(ShardError, match="none of 25 images could be fetched"):
        ingest(make_recipe(tmp_path, url_source(table), samples_per_shard=50, fetch=settings))
    assert not list((tmp_path / "raw").rglob("000*/*.parquet"))
    folder = ingest(make_recipe(tmp_path, url_source(table), samples_per_shard=10, fetch=settings))
    assert load_manifest(folder).drop_counts == {"connection_error": 25, "invalid_url": 1}, "too few to tell"


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars_are_adopted_in_place(tmp_path: Path, pages: dict[str, bytes], ray_session: None) -> None:
    uid = "f" * 32
    (tmp_path / "tars").mkdir()
    fields = json.dumps({"url": "http://a.org/1.jpg", "caption": "from the json", "uid": uid, "n": 7}).encode()
    first = write_tar(tmp_path / "tars/a.tar", [
        ("b/0.JPG", pages["0.jpg"]), ("a/1.json", fields), ("b/0.TXT", b"unordered, upper-case"),
        ("a/1.jpg", pages["1.jpg"]), ("v1.0.jpg", pages["2.jpg"]), ("v1.0.txt", b"dotted"), ("README", b"hello"),
        ("v2.0.jpg", pages["3.jpg"]), ("v2.0.txt", b"dotted too"), ("c.jpg", pages["4.jpg"]), ("c.txt", b"with depth"),
        ("c.depth.png", pages["dot.png"]), ("d.jpg", pages["page.jpg"]), ("d.txt", b"a page"), ("e.txt", b"no image"),
        ("f.jpg", pages["5.jpg"]), ("g.png", pages["bomb.png"]), ("g.txt", b"bomb"),
        ("h.jpg", pages["6.jpg"]), ("h.json", b"{broken"), ("h.txt", b"broken json"),
    ])  # fmt: skip
    write_tar(tmp_path / "tars/b.tar", [("0.jpg", pages["0.jpg"]), ("0.txt", b"unordered, upper-case"),
                                        ("0.jpg", pages["7.jpg"]), ("0.txt", b"the key again")])  # fmt: skip
    recipe = make_recipe(tmp_path, {"kind": "webdataset", "path": str(tmp_path / "tars"), "keep_columns": ["n"]})
    before = changes(tmp_path / "tars")
    folder = ingest(recipe)
    assert changes(tmp_path / "tars") == before
    assert not list(Path(folder).rglob("*.tar"))
    rows = read_rows(folder)
    assert [(row["key"], row["caption"], row["drop_reason"]) for row in rows] == [
        ("b/0", "unordered, upper-case", None),
        ("a/1", "from the json", None),
        ("v1.0", "dotted", None),
        ("v2.0", "dotted too", None),
        ("c", "with depth", None),
        (None, "a page", "not_an_image"),
        (None, "no image", "missing_image"),
        (None, None, "empty_caption"),
        (None, "bomb", "too_many_pixels"),
        ("h", "broken json", None),
        (None, "unordered, upper-case", "duplicate_row"),
        ("0+1", "the key again", None),
    ]
    assert (rows[1]["uid"], rows[1]["url"], rows[1]["n"]) == (uid, "http://a.org/1.jpg", "7")
    manifest = load_manifest(folder)
    assert (manifest.shards[0].url, manifest.shards[0].sha256) == (str(first), None)
    assert [shard.num_samples for shard in manifest.shards] == [6, 1]
    assert manifest.drop_counts["duplicate_row"] == 1
    check_offsets(folder, manifest, rows)
    written = changes(tmp_path)
    assert ingest(recipe) == folder
    assert changes(tmp_path) == written


def test_an_img2dataset_tar_is_adopted(tmp_path: Path, ray_session: None, shared_data: Callable[[str], Path]) -> None:
    tars = shared_data("cc12m_wds")
    folder = ingest(make_recipe(tmp_path, {"kind": "webdataset", "path": str(tars), "keep_columns": ["exif"]}))
    manifest, rows = load_manifest(folder), read_rows(folder)
    assert manifest.num_samples == 32
    check_offsets(folder, manifest, rows)
    assert rows[0]["uid"] == make_uid(rows[0]["url"], rows[0]["caption"])
    assert (rows[0]["width"], rows[0]["original_width"], rows[0]["exif"]) == (512, 1024, "{}")


@pytest.mark.parametrize("is_struct", [True, False])
def test_parquet_with_images(tmp_path: Path, pages: dict[str, bytes], ray_session: None, is_struct: bool) -> None:
    data = [pages["0.jpg"], None, pages["page.jpg"], pages["0.jpg"], pages["1.jpg"]]
    captions = [["a", "b"], ["c"], ["d"], ["a"], []]
    images = pa.array([{"bytes": one, "path": "x"} for one in data]) if is_struct else pa.array(data, pa.binary())
    pq.write_table(pa.table({"image": images, "caption": captions, "n": range(5)}), tmp_path / "a.parquet")
    source = {"kind": "parquet_images", "path": str(tmp_path / "a.parquet"), "keep_columns": ["n"]}
    folder = ingest(make_recipe(tmp_path, source, samples_per_shard=4))
    rows = read_rows(folder)
    assert [(row["caption"], row["n"], row["drop_reason"]) for row in rows] == [
        ("a", 0, None), ("b", 0, None), ("c", 1, "missing_image"), ("d", 2, "not_an_image"),
        ("a", 3, "duplicate_row"), (None, 4, "empty_caption")]  # fmt: skip
    assert rows[0]["uid"] == make_uid(None, "a", rows[0]["sha256"])
    check_offsets(folder, load_manifest(folder), rows)
    with pytest.raises(InputError, match="images are binary or a struct"):
        ingest(make_recipe(tmp_path / "x", {**source, "image_column": "n", "keep_columns": []}))


def test_a_folder_of_images_beside_texts(tmp_path: Path, pages: dict[str, bytes], ray_session: None) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "deep/B.JPG", "c.v2.png")):
        (images / name).write_bytes(pages[f"{index}.jpg"])
        (images / name).with_suffix(".txt").write_text(f"caption of {name}")
    (images / "silent.jpg").write_bytes(pages["3.jpg"])
    recipe = make_recipe(tmp_path, {"kind": "folder", "path": str(images)})
    rows = read_rows(ingest(recipe))
    assert [(row["caption"], row["drop_reason"]) for row in rows] == [
        ("caption of a.jpg", None), ("caption of c.v2.png", None), ("caption of deep/B.JPG", None),
        (None, "empty_caption")]  # fmt: skip
    (images / "new.jpg").write_bytes(pages["4.jpg"])
    (images / "new.txt").write_text("new")
    assert len(read_rows(ingest(recipe))) == 5
    (images / "new.txt").write_text("changed")
    with pytest.raises(InputError, match=r"new\.jpg: has changed"):
        ingest(recipe)


def test_a_folder_with_a_captions_table(tmp_path: Path, pages: dict[str, bytes], ray_session: None) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(pages["9.jpg"])
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for index in range(3):
        (data / f"images/{index}.jpg").write_bytes(pages[f"{index}.jpg"])
    lines = [{"image": "images/0.jpg", "captions": ["one", "two"], "split": "train"},
             {"image": "images/1.jpg", "captions": "three", "split": "test"},
             {"image": "images/none.jpg", "captions": ["four"]},
             {"image": "../secret.jpg", "captions": ["five"]}]  # fmt: skip
    (data / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    source = {"kind": "folder", "path": str(data), "caption_column": "captions", "keep_columns": ["split"]}
    rows = read_rows(ingest(make_recipe(tmp_path, source)))
    assert [(row["caption"], row["split"], row["drop_reason"]) for row in rows] == [
        ("one", "train", None), ("two", "train", None), ("three", "test", None), ("four", None, "missing_image"),
        ("five", None, "missing_image")]  # fmt: skip


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


def test_duplicates_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    uids = [[f"{int(number) << 114 | 7:032x}" for number in random.integers(0, 500, 300)] for _ in range(5)]
    names = [f"0000/{index:07d}" for index in range(5)]
    for name, of_shard in zip(names, uids, strict=True):
        save_uids(str(tmp_path), name, of_shard)
    seen: set[str] = set()
    expected = []
    for name, of_shard in zip(names, uids, strict=True):
        for row, uid in enumerate(of_shard):
            if uid in seen:
                expected.append((name, row))
            seen.add(uid)
    for max_part_rows in (10**6, 400, 50):
        found = find_duplicate_rows(str(tmp_path), names, max_part_rows)
        assert [(name, int(row)) for name in found for row in found[name]] == expected


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
from schemas.curate_recipe import CurateRecipe
from schemas.recipe_io import load_recipe
from pipelines.ingest import ingest
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
ingest(load_recipe(sys.argv[2], CurateRecipe))
"""


@pytest.mark.slow
def test_killed_midway_and_run_again_gives_the_same_bytes(
    tmp_path: Path, server: TestServer, ray_session: None
) -> None:
    rows = url_rows(server, [f"{index % NUM_IMAGES}.jpg" for index in range(120)])
    for row in rows:
        row["url"] = row["url"].replace("/files/", "/slow/0.1/")
    table = write_csv(tmp_path / "urls.csv", rows)
    recipes = [
        make_recipe(tmp_path / name, url_source(table), fetch={"concurrency": 2}) for name in ("killed", "whole")
    ]
    (tmp_path / "recipe.json").write_text(recipes[0].model_dump_json())
    repository = str(Path(__file__).parent.parent)
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


def test_errors_of_users_are_user_errors() -> None:
    assert issubclass(InputError, UserError)
    assert issubclass(RecipeError, UserError)
