"""Several images of one key of a tar, and several captions of one image: each becomes a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.pipelines.ingest.retry import retry_transient
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.columns import sha256_hex
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.http_server import TestServer
from tests.support.ingest_builder import check_offsets, make_recipe, read_rows, url_source, write_csv, write_tar

IMAGES = [("0.0.jpg", "0"), ("0.1.jpg", "1"), ("0.10.jpg", "2"), ("1.jpg", "3"), ("1.png", "4"), ("2.right.jpg", "5"),
          ("2.left.webp", "6"), ("3.jpg", "7"), ("3.1.jpg", "8"), ("4.0.jpg", "9"), ("4.1.jpg", "10")]  # fmt: skip
EXPECTED = {"0.0.jpg": "zero", "1.jpg": "one", "2.left.webp": "two", "3.jpg": "three", "4.0.jpg": "four a",
            "4.1.jpg": "four b"}  # fmt: skip


@pytest.mark.parametrize("is_reversed", [False, True])
def test_several_images_of_a_key(tmp_path: Path, pages: dict[str, bytes], ray_session: None, is_reversed: bool) -> None:
    """The first image by name is the sample's, in any order of the tar; 4.0 and 4.1 have their own captions."""
    members = [(name, pages[f"{number}.jpg"]) for name, number in IMAGES]
    texts = {"0": "zero", "1": "one", "2": "two", "3": "three", "4.0": "four a", "4.1": "four b"}
    members += [(f"{key}.txt", text.encode()) for key, text in texts.items()]
    write_tar(tmp_path / "a.tar", members[::-1] if is_reversed else members)
    folder = ingest(make_recipe(tmp_path, {"kind": "webdataset", "path": str(tmp_path / "a.tar")}))
    rows, manifest = read_rows(folder), load_manifest(folder)
    assert len(rows) == len(IMAGES)
    kept = {row["caption"]: row["sha256"] for row in rows if row["status"] == "success"}
    assert kept == {EXPECTED[name]: sha256_hex(pages[f"{number}.jpg"]) for name, number in IMAGES if name in EXPECTED}
    others = [row for row in rows if row["status"] != "success"]
    assert {row["drop_reason"] for row in others} == {"second_image"}
    assert {row["error_message"].partition(":")[0] for row in others} == {name for name, _ in IMAGES} - set(EXPECTED)
    assert manifest.num_samples + sum(manifest.drop_counts.values()) == manifest.num_rows == len(IMAGES)
    assert len({row["uid"] for row in rows}) == len(rows)
    check_offsets(folder, manifest, rows)


def test_the_field_that_is_named_comes_before_the_text(
    tmp_path: Path, pages: dict[str, bytes], ray_session: None
) -> None:
    fields = json.dumps({"caption": "alt", "recaption": "written anew"}).encode()
    members = [("0.jpg", pages["0.jpg"]), ("0.txt", b"alt"), ("0.json", fields),
               ("1.jpg", pages["1.jpg"]), ("1.txt", b"only alt")]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = {"kind": "webdataset", "path": str(tmp_path / "a.tar")}
    for column, expected in (("recaption", "written anew"), ("caption", "alt")):
        rows = read_rows(ingest(make_recipe(tmp_path / column, {**source, "caption_column": column})))
        assert [row["caption"] for row in rows] == [expected, "only alt"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_several_caption_columns(tmp_path: Path, web: TestServer, ray_session: None, kind: str) -> None:
    """One row per caption column, in the order of the recipe; each image is fetched once, for any shards."""
    table: list[dict[str, Any]] = [
        {
            "url": f"{web.url}/files/{n}.jpg",
            "alt": f"alt {n}",
            "synthetic": None if n == 1 else f"made {n}",
            "n": str(n),
        }
        for n in range(3)
    ]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        write_csv(path, table)
    elif kind == "jsonl":
        table[2]["synthetic"] = ["made 2", "made 2 again"]
        path.write_text("\n".join(json.dumps(row) for row in table))
    else:
        made = [["made 0"], [], ["made 2", "made 2 again"]]
        pq.write_table(pa.Table.from_pylist(table).set_column(2, "synthetic", pa.array(made)), path)
    source = url_source(path, caption_column=["synthetic", "alt"], keep_columns=["n"])
    folder = ingest(make_recipe(tmp_path / "out", source, samples_per_shard=7))
    found = [(row["caption"], row["caption_column"], row["n"], row["drop_reason"]) for row in read_rows(folder)]
    again = [] if kind == "csv" else [("made 2 again", "synthetic", "2", None)]
    assert found == [
        ("made 0", "synthetic", "0", None), ("alt 0", "alt", "0", None), (None, "synthetic", "1", "empty_caption"),
        ("alt 1", "alt", "1", None), ("made 2", "synthetic", "2", None), *again,
        ("alt 2", "alt", "2", None)]  # fmt: skip
    assert {web.requests[f"/files/{n}.jpg"] for n in range(3)} == {1}
    cut = read_rows(ingest(make_recipe(tmp_path / "cut", source, samples_per_shard=2)))
    same = ("uid", "caption", "caption_column", "drop_reason", "image_sha256")
    assert [[row[name] for name in same] for row in cut] == [[row[name] for name in same] for row in read_rows(folder)]


def test_captions_of_one_image_fail_and_heal_together(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    table = [{"url": f"{web.url}/flaky/1/0.jpg", "a": "one", "b": "two"}]
    source = url_source(write_csv(tmp_path / "a.csv", table), caption_column=["a", "b"])
    recipe = make_recipe(tmp_path, source, fetch={"retries": 0})
    folder = ingest(recipe)
    assert [row["drop_reason"] for row in read_rows(folder)] == ["http_server_error"] * 2
    assert retry_transient(recipe, folder)["num_came"] == 2
    assert [(row["caption"], row["caption_column"], row["width"]) for row in read_rows(folder)] == [
        ("one", "a", 274), ("two", "b", 274)]  # fmt: skip
    assert web.requests["/flaky/1/0.jpg"] == 2


def test_several_caption_columns_where_there_is_no_table(tmp_path: Path, pages: dict[str, bytes]) -> None:
    (tmp_path / "0.jpg").write_bytes(pages["0.jpg"])
    with pytest.raises(RecipeError, match="caption_column: images with"):
        ingest(make_recipe(tmp_path / "out", {"kind": "folder", "path": str(tmp_path), "caption_column": ["a", "b"]}))
    for settings, message in (
        ({"kind": "webdataset", "caption_column": ["a", "b"]}, "a sample of a tar has one caption"),
        ({"kind": "url_table", "caption_column": ["a", "a"]}, "a column is listed twice"),
        ({"kind": "url_table", "caption_column": []}, "at least 1 item"),
    ):
        with pytest.raises(ValidationError, match=message):
            CurateRecipe.model_validate({"root": "x", "source": {"path": "x", **settings}})
