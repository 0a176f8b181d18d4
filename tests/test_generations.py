"""Retry and recall: new generations of a raw data set, and everything that hangs on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cluster.cli import cli
from cluster.inspect_path import inspect_path
from cluster.staleness import stale_data
from pipelines.curate import curate
from pipelines.ingest import ingest
from pipelines.inspect import explain
from pipelines.raw_generation import save_generation
from pipelines.raw_shard import ShardJob, make_shard
from pipelines.recall import recall
from pipelines.recalled_rows import Rules, parse_request
from pipelines.retry import retry_transient
from pipelines.signals.signal import measure_signal
from pipelines.sources.source import Piece
from pipelines.step_folder import nothing
from schemas import storage
from schemas.curate_recipe import CaptionSignals, CurateRecipe
from schemas.errors import InputError
from schemas.manifest import load_manifest, table_url, tar_url
from schemas.preprocess import Preprocess
from schemas.sample import read_table, write_table
from schemas.shard import ShardReader
from schemas.tombstones import put_tombstone
from schemas.train_recipe import AugmentRecipe, DataSource
from tests.generation_builder import retry_here
from tests.http_server import TestServer, serve
from tests.ingest_builder import (
    changes,
    check_offsets,
    check_webdataset,
    make_recipe,
    read_rows,
    url_source,
    write_csv,
    write_tar,
)
from tests.tiny_runs import tiny_recipe
from trainers.checkpoint import TrainState
from trainers.data.dataset import open_dataset
from trainers.data.decode import Loader
from trainers.data.stream import Order, Stream

NUM_ROWS = 20
FAILING = {0: 503, 5: 503, 9: 429, 19: 503}  # rows that fail once
HOPELESS = {6: 404, 12: 503}
GONE = {6: "http_not_found", 12: "http_server_error"}
OPTED_OUT = (1, 2, 9, 14)  # rows under the host `localhost`


@pytest.fixture
def web(pages: dict[str, bytes]) -> Iterator[TestServer]:
    with serve(pages=pages) as server:
        yield server


def source_rows(web: TestServer) -> list[dict[str, str]]:
    """20 URLs; some fail once, some for ever, some are of another host; rows 3 and 14 are one image."""
    rows = []
    for index in range(NUM_ROWS):
        path = f"files/{3 if index == 14 else index}.jpg"
        path = f"flaky/1/{index}.jpg?status={FAILING[index]}" if index in FAILING else path
        path = f"status/{HOPELESS[index]}?{index}" if index in HOPELESS else path
        base = web.url.replace("127.0.0.1", "localhost") if index in OPTED_OUT else web.url
        rows.append({"url": f"{base}/{path}", "caption": f"a picture of thing {index}", "license": f"cc-{index}"})
    return rows


def recipe_on(tmp_path: Path, web: TestServer, name: str = "out", **settings: Any) -> CurateRecipe:
    table = tmp_path / "urls" / "a.csv"
    if not table.exists():
        table.parent.mkdir()
        write_csv(table, source_rows(web))
    source = url_source(table.parent, keep_columns=["license"])
    return make_recipe(tmp_path / name, source, fetch={"retries": 0, "timeout_s": 5}, **settings)


def reasons_of(folder: str) -> dict[int, str]:
    tables = [read_table(table_url(folder, shard.name), ["drop_reason"]) for shard in load_manifest(folder).shards]
    reasons = [reason for table in tables for reason in table["drop_reason"].to_pylist()]
    return {index: reason for index, reason in enumerate(reasons) if reason}


def check_raw(folder: str) -> None:
    """Every image is where its table and the manifest say, and no old tar or scratch is left."""
    manifest, rows = load_manifest(folder), read_rows(folder)
    check_offsets(folder, manifest, rows)
    check_webdataset(folder, manifest, rows)
    tars = {str(path.relative_to(folder)) for path in Path(folder).rglob("*.tar")}
    assert tars == {str(Path(tar_url(folder, shard)).relative_to(folder)) for shard in manifest.shards}
    assert set(json.loads((Path(folder) / "sizes.json").read_text())) <= tars
    assert not (Path(folder) / "rewrite").exists()


def files(folder: str | Path) -> dict[str, int]:
    return {path: time_ns for path, time_ns in changes(Path(folder)).items() if Path(path).is_file()}


def test_retry_heals_as_if_nothing_had_failed(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    recipe = recipe_on(tmp_path, web, samples_per_shard=4)
    folder = ingest(recipe)
    first, old = load_manifest(folder), files(folder)
    assert set(reasons_of(folder)) == FAILING.keys() | HOPELESS.keys()
    num_asked = sum(web.requests.values())
    assert retry_transient(recipe, folder) == {"num_rows": 5, "num_came": 4, "num_shards": 5, "generation": 1}
    robots = [path for path in web.requests if "robots" in path]
    assert sum(web.requests.values()) - num_asked <= 5 + len(robots), "just the rows that failed"
    assert reasons_of(folder) == GONE
    check_raw(folder)
    whole = ingest(recipe_on(tmp_path, web, "whole", samples_per_shard=4))  # nothing fails any more
    tars = [[Path(tar_url(of, shard)).read_bytes() for shard in load_manifest(of).shards] for of in (folder, whole)]
    assert tars[0] == tars[1]
    assert read_rows(folder) == read_rows(whole)
    now, same = load_manifest(folder), load_manifest(whole)
    assert (now.drop_counts, now.details, now.num_bytes) == (same.drop_counts, same.details, same.num_bytes)
    assert (now.generation, now.hash() == first.hash()) == (1, False)
    untouched = "0000/0000003"  # row 12 came in vain
    assert [files(folder)[f"{folder}/{untouched}{end}"] for end in (".tar", ".parquet")] == [
        old[f"{folder}/{untouched}{end}"] for end in (".tar", ".parquet")]  # fmt: skip
    before = files(folder)
    assert retry_transient(recipe, folder)["num_came"] == 0
    assert ingest(recipe, before_work=lambda: pytest.fail("there is no work")) == folder
    assert files(folder) == before
    head = (Path(folder) / "manifest.json").read_bytes()
    write_csv(tmp_path / "urls" / "b.csv", source_rows(web)[6:8])
    ingest(recipe)
    after = load_manifest(folder)
    assert after.generation == 2
    check_raw(folder)
    (Path(folder) / "manifest.json").write_bytes(head)  # as if killed between the files of the manifest
    ingest(recipe)
    assert load_manifest(folder) == after


@pytest.mark.parametrize("operation", ["retry", "recall"])
def test_killed_at_any_write_the_same_command_finishes(
    tmp_path: Path, web: TestServer, ray_session: None, operation: str
) -> None:
    recipe = recipe_on(tmp_path, web)
    ingest(recipe)
    if operation == "recall":
        put_tombstone(recipe.root, "domains", ["localhost"])
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    program = Path(__file__).parent / "generation_builder.py"
    command = [sys.executable, program, program.parent.parent, operation, tmp_path / "recipe.json", recipe.root]
    done = subprocess.run([*command, tmp_path / "scratch"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15, "3 tars, 3 tables twice, journal, manifest, removals"


def request(kind: str, *values: str) -> Rules:
    return parse_request(kind, values, "request.txt")


def bytes_below(root: str) -> bytes:
    return b"".join(storage.read_bytes(url) for url in storage.expand(root))


def test_recall_leaves_nothing_of_a_sample(
    tmp_path: Path, web: TestServer, pages: dict[str, bytes], ray_session: None
) -> None:
    recipe = recipe_on(tmp_path, web)
    folder = ingest(recipe)
    rows = read_rows(folder)
    images = {row["image_sha256"]: image_of(folder, index) for index, row in enumerate(rows) if row["key"]}
    before = files(recipe.root)
    counted = recall(recipe.root, request("domains", "localhost"), dry_run=True)
    assert (counted["num_rows"], counted["num_shards"]) == (4, 2)
    assert files(recipe.root) == before
    result = recall(recipe.root, request("domains", "localhost"))
    assert (result["num_rows"], result["num_shards"]) == (4, 2)
    assert load_manifest(folder).generation == 1
    check_raw_rows(folder, rows)
    now = read_rows(folder)
    assert now[3]["sha256"] == rows[14]["sha256"] is not None, "the same image under another host stays"
    everything = bytes_below(folder)
    for index in OPTED_OUT:
        blank = {name: value for name, value in now[index].items() if value is not None}
        assert blank == {"uid": rows[index]["uid"], "status": "dropped", "drop_reason": "recalled",
                         "error_message": "an opt-out request names it"}  # fmt: skip
        assert rows[index]["caption"].encode() + b"\n" not in everything
    assert images[rows[1]["image_sha256"]] not in everything
    assert images[rows[0 + 4]["image_sha256"]] in everything
    assert recall(recipe.root, request("domains", "*.LOCALHOST."))["num_rows"] == 0, "done"
    assert load_manifest(folder).generation == 1
    same = recall(recipe.root, request("uids", rows[3]["uid"]), same_images=True)
    assert same["num_rows"] == 1
    retry_transient(recipe, folder)
    assert reasons_of(folder) == {**GONE, 3: "recalled", **dict.fromkeys(OPTED_OUT, "recalled")}
    assert explain(recipe.root, rows[1]["uid"])["verdict"] == "dropped by raw/main: recalled"


def check_raw_rows(folder: str, before: list[dict[str, Any]]) -> None:
    """All rows that were not recalled are as they were but for their offsets."""
    check_raw(folder)
    for index, (old, new) in enumerate(zip(before, read_rows(folder), strict=True)):
        if index not in OPTED_OUT:
            assert {**old, "offset": None} == {**new, "offset": None}


def image_of(folder: str, row: int) -> bytes:
    place = row
    for shard in load_manifest(folder).shards:
        if place < shard.num_rows:
            values = read_table(table_url(folder, shard.name)).slice(place, 1).to_pylist()[0]
            return ShardReader(tar_url(folder, shard)).read(values["offset"], values["num_bytes"])
        place -= shard.num_rows
    raise AssertionError("no such row")


def test_a_later_ingest_does_not_even_ask(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    recipe = recipe_on(tmp_path, web)
    folder = ingest(recipe)
    rows = read_rows(folder)
    recall(recipe.root, request("urls", "# who asked", "", f" {rows[4]['url']}#fragment"))
    recall(recipe.root, request("uids", rows[7]["uid"]), same_images=True)
    recall(recipe.root, request("domains", "localhost"))
    assert load_manifest(folder).generation == 3
    new = [{**source_rows(web)[4], "caption": "another caption"}, {**source_rows(web)[1], "caption": "other words"},
           {**source_rows(web)[8], "caption": "welcome"},
           {**source_rows(web)[7], "url": f"{web.url}/redirect/1/7.jpg"}]  # fmt: skip
    write_csv(tmp_path / "urls" / "b.csv", new)
    with web.lock:
        web.requests.clear()
    ingest(recipe)
    assert [row["drop_reason"] for row in read_rows(folder)[-4:]] == ["recalled", "recalled", None, "recalled"]
    assert not [path for path in web.requests if path in ("/files/4.jpg", "/files/1.jpg")]
    assert b"another caption" not in bytes_below(folder)
    check_raw(folder)


def test_adopted_tars_are_masked(tmp_path: Path, pages: dict[str, bytes], ray_session: None) -> None:
    members = [(f"{index}.{end}", data) for index in range(4)
               for end, data in (("jpg", pages[f"{index}.jpg"]), ("txt", f"picture {index}".encode()))]  # fmt: skip
    tar = write_tar(tmp_path / "foreign.tar", members)
    before = tar.read_bytes()
    recipe = make_recipe(tmp_path / "out", {"kind": "webdataset", "path": str(tar)})
    folder = ingest(recipe)
    uid = read_rows(folder)[2]["uid"]
    assert recall(recipe.root, request("uids", uid))["num_rows"] == 1
    assert tar.read_bytes() == before
    assert reasons_of(folder) == {2: "recalled"}
    manifest = load_manifest(folder)
    assert (manifest.num_samples, manifest.generation, manifest.shards[0].url) == (3, 1, str(tar))
    check_offsets(folder, manifest, read_rows(folder))


def test_object_storage(tmp_path: Path, web: TestServer, pages: dict[str, bytes]) -> None:
    """Without Ray, for memory:// is one process."""
    root = f"memory://{tmp_path.name}-{web.server_port}"
    folder = f"{root}/raw/main/00000000"
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(source_rows(web)), table)
    recipe = make_recipe(Path("unused"), url_source(table), fetch={"retries": 0})
    jobs = [ShardJob(recipe.source, recipe.ingest, folder, index, (Piece(str(table), str(table), 10 * index, 10),))
            for index in range(2)]  # fmt: skip
    head = {"name": "main", "step": "raw", "recipe_hash": "0" * 64, "parents": (), "details": {}}
    save_generation(folder, head, [make_shard(job) for job in jobs], [])
    retry_here(recipe, folder)
    assert reasons_of(folder) == GONE
    removed = image_of(folder, 0)
    assert removed in bytes_below(folder)
    storage.put_bytes(f"{root}/request.txt", f"{source_rows(web)[0]['url']}\n".encode())
    shown = CliRunner().invoke(cli, ["recall", root, "--urls", f"{root}/request.txt", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["num_rows"] == 1
    assert reasons_of(folder) == {0: "recalled", **GONE}
    assert removed not in bytes_below(folder)
    assert load_manifest(folder).generation == 2
    assert len([url for url in storage.list_files(f"{folder}/0000") if url.endswith(".tar")]) == 2
    assert image_of(folder, 1)


def test_everything_downstream_knows(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    parts = recipe_on(tmp_path, web).model_dump()
    recipe = CurateRecipe.model_validate({**parts, "signals": [{"kind": "captions"}], "select": {"min_words": 3},
                                          "reshard": {"samples_per_shard": 8}})  # fmt: skip
    summary = curate(recipe, nothing)
    old = {step["name"]: step["folder"] for step in summary["steps"]}
    raw_rows = read_rows(old["ingest"])
    run = tmp_path / "runs" / "clip"
    (run / "checkpoints/step-0000001").mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    data = {"path": str(Path(old["reshard"]).parent), "manifest_hash": load_manifest(old["reshard"]).hash()}
    (run / "checkpoints/step-0000001/state.json").write_text(json.dumps(asdict(TrainState(1, 8, 1, 0, [data]))))
    assert all("stale" not in inspect_path(path) for path in [*old.values(), str(run)])
    before = order_of(old["reshard"])
    result = recall(recipe.root, request("domains", "localhost"))
    retry_transient(recipe, old["ingest"])
    line = "stale: raw/main is at generation 2, this was made from generation 0"
    assert "stale" not in inspect_path(old["ingest"])
    for step in ("signals captions", "dedupe", "select", "reshard"):
        assert inspect_path(old[step])["stale"] == [line]
        assert any(entry.startswith(f"{old[step]}: stale: raw/main") for entry in result["stale"])
    assert inspect_path(str(run))["stale"] == [f"{line} ({data['path']})"]
    shown = CliRunner().invoke(cli, ["recall", recipe.root, "--uids", "-", "--dry-run"], input=raw_rows[3]["uid"])
    assert f"{run}: {line}" in shown.output.replace(f"{recipe.root}/../", f"{tmp_path}/"), shown.output
    assert stale_data(tiny_recipe(tmp_path / "new", old["reshard"])) == [f"{old['reshard']}: {line}"]
    check_loader(before, old["reshard"], {raw_rows[index]["uid"] for index in OPTED_OUT})
    again = {step["name"]: step["folder"] for step in curate(recipe, nothing)["steps"]}
    uids = {row["uid"] for row in read_rows(again["reshard"])}
    assert again["reshard"] != old["reshard"]
    assert not uids & {raw_rows[index]["uid"] for index in OPTED_OUT}
    assert raw_rows[0]["uid"] in uids, "healed"
    assert all("stale" not in inspect_path(path) for path in again.values())


def test_signals_of_unchanged_shards_are_not_measured_again(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    recipe = recipe_on(tmp_path, web)
    raw = ingest(recipe)
    old = measure_signal(recipe, CaptionSignals(kind="captions"), raw, None)
    marked = read_table(table_url(old, "0000/0000002"))
    marked = marked.set_column(1, marked.schema.field(1), pa.nulls(4, marked.schema.field(1).type))
    write_table(table_url(old, "0000/0000002"), marked)
    recall(recipe.root, request("domains", "localhost"))  # shards 0 and 1
    new = measure_signal(recipe, CaptionSignals(kind="captions"), raw, None)
    assert new != old
    assert read_table(table_url(new, "0000/0000002")).equals(marked), "copied"
    words = read_table(table_url(new, "0000/0000000"))["num_words"].to_pylist()
    assert [row for row, value in enumerate(words) if value is None] == [0, 1, 2, 5, 6], "recalled ones too"


def order_of(folder: str) -> list[str]:
    dataset = open_dataset(DataSource(path=folder))
    stream = Stream([Order(dataset.shard_sizes, 0, 0)], [1.0], 4, 4)
    loader = Loader([dataset], stream, Preprocess(32), AugmentRecipe(), 0, 0, 1)
    return [uid for step in range(8) for uid in loader.share(step).uids]


def check_loader(before: list[str], folder: str, recalled: set[str]) -> None:
    """The samples of a recalled host are replaced, the same way each time, and all others keep their place."""
    now = order_of(folder)
    assert recalled & set(before)
    assert not recalled & set(now)
    assert now == order_of(folder)
    assert [uid for uid in before if uid not in recalled] == [
        uid for uid, earlier in zip(now, before, strict=True) if earlier not in recalled
    ]


def test_an_interrupted_ingest_honours_what_came_meanwhile(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    recipe = recipe_on(tmp_path, web)
    folder = Path(ingest(recipe))
    (folder / "manifest.json").unlink()  # as if killed before its end
    assert recall(recipe.root, request("domains", "localhost"))["unfinished"] == [str(folder)]
    ingest(recipe)
    assert {row for row, reason in reasons_of(str(folder)).items() if reason == "recalled"} == set(OPTED_OUT)
    check_raw(str(folder))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("uids", "xyz"), ("urls", "not a url"), ("domains", "http://a.test/x"), ("domains", "a.test/x"), ("uids", "# no")],
)
def test_a_bad_request_is_one_line(kind: str, text: str) -> None:
    with pytest.raises(InputError, match=r"request\.txt"):
        request(kind, text)


def test_domains_match_hosts_and_their_subdomains() -> None:
    rules = request("domains", "a.test", "*.b.test", "Bücher.test")
    urls = ["http://a.test/x", "https://img.A.test:8080/x", "http://nota.test/", "http://b.test", "http://bücher.test/1",
            "http://a.test.evil.test", "nonsense", None]  # fmt: skip
    assert [rules.names("0" * 32, url) for url in urls] == [True, True, False, True, True, False, False, False]
    assert request("uids", "AB" * 16).names("ab" * 16, None)
