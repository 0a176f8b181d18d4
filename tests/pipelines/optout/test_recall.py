"""Recall removes opted-out samples from the raw data set, and results made from it are stale."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pairloom.cluster.cli import cli
from pairloom.cluster.inspect_path import inspect_path
from pairloom.cluster.staleness import stale_data
from pairloom.pipelines.curate import curate
from pairloom.pipelines.engine.step_folder import nothing
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.pipelines.ingest.retry import retry_transient
from pairloom.pipelines.ingest.shard import ShardJob, make_shard
from pairloom.pipelines.inspect.inspect import explain
from pairloom.pipelines.optout.recall import recall
from pairloom.pipelines.raw.generation import save_generation
from pairloom.pipelines.signals.captions import CaptionSignals
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.sources.source import Piece
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.schemas.storage import storage
from pairloom.trainers.checkpoints.checkpoint import TrainState
from pairloom.trainers.data.dataset import open_dataset
from pairloom.trainers.data.loader import Loader
from pairloom.trainers.data.sample_order import Order, Stream
from tests.support.generation_builder import (
    GONE,
    OPTED_OUT,
    bytes_below,
    check_raw,
    files,
    image_of,
    reasons_of,
    recipe_on,
    request,
    retry_here,
    source_rows,
)
from tests.support.http_server import TestServer
from tests.support.ingest_builder import check_offsets, make_recipe, read_rows, url_source, write_csv, write_tar
from tests.support.tiny_runs import tiny_recipe


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
    """Rows that are not recalled do not change, except their offsets."""
    check_raw(folder)
    for index, (old, new) in enumerate(zip(before, read_rows(folder), strict=True)):
        if index not in OPTED_OUT:
            assert {**old, "offset": None} == {**new, "offset": None}


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
    """Without Ray, because memory:// is local to a process."""
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
    assert (curate(recipe, nothing, only="ingest", retry=True)["retried"] or {})["num_came"] == 3
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
    """Samples of a recalled host are replaced deterministically, and all others keep their position."""
    now = order_of(folder)
    assert recalled & set(before)
    assert not recalled & set(now)
    assert now == order_of(folder)
    assert [uid for uid in before if uid not in recalled] == [
        uid for uid, earlier in zip(now, before, strict=True) if earlier not in recalled
    ]


def test_interrupted_ingest_applies_newer_tombstones(tmp_path: Path, web: TestServer, ray_session: None) -> None:
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
