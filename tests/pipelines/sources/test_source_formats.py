"""Rows of tables by every kind of path, of published caption files, and of the output of other tools."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.pipelines.sources.open_source import open_source
from pairloom.pipelines.sources.source import Piece, SourceRow
from pairloom.pipelines.sources.text_tables import read_text_rows
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.image_files import encoded, photo
from tests.support.ingest_builder import make_recipe, read_rows, write_csv, write_tar

RED = encoded(np.full((4, 4, 3), (250, 0, 0), np.uint8), "PNG")


def rows_of(tmp_path: Path, **source: Any) -> list[SourceRow]:
    """All rows of a source, read as ingest does."""
    opened = open_source(CurateRecipe.model_validate({"root": "unused", "source": source}).source)
    rows: list[SourceRow] = []
    for file in opened.list_files():
        num_rows = None
        if not opened.is_adopted and file.num_rows is None:
            num_rows = opened.prepare(file, str(tmp_path / "staged")).num_rows
        rows += opened.read_rows(Piece(opened.readable(file, str(tmp_path / "staged")), file.path, 0, num_rows))
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    kind = path.name.split(".")[1]
    if kind in ("csv", "tsv"):
        write_csv(path, rows, "," if kind == "csv" else "\t")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows))
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(path.read_bytes()))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("place", ["file", "folder", "glob", "memory"])
def test_every_table_by_every_name(tmp_path: Path, kind: str, packing: str, place: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [{"url": f"http://a.org/{n}", "caption": f"ünï, “{n}”", "license": str(n)} for n in range(6)]
    write_table(folder / f"a.{kind}{packing}", rows[:3])
    if place != "file":
        write_table(folder / f"b.{kind}{packing}", rows[3:])
    path = {"file": str(folder / f"a.{kind}{packing}"), "folder": str(folder), "glob": str(folder / "*"),
            "memory": "memory://formats/*"}[place]  # fmt: skip
    if place == "memory":
        memory = fsspec.filesystem("memory")
        for file in folder.iterdir():
            memory.pipe(f"/formats/{file.name}", file.read_bytes())
    try:
        found = rows_of(tmp_path, kind="url_table", path=path, keep_columns=["license"])
    finally:
        if place == "memory":
            memory.rm("/formats", recursive=True)
    expected = rows[:3] if place == "file" else rows
    assert [{"url": row.url, "caption": row.caption, **row.kept} for row in found] == expected


def test_a_json_array_on_one_line_is_streamed(tmp_path: Path) -> None:
    """The first rows are read although the end of the file is broken: the file is streamed."""
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join(json.dumps({"url": "x" * 1000, "n": n}) for n in range(5000)) + ", broken")
    rows = read_text_rows(str(path))
    assert [next(rows)["n"] for _ in range(3)] == [0, 1, 2]


COCO = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "b.png", "coco_url": "http://a.org/b.png", "license": 3, "height": 4},
               {"id": 7, "file_name": "a.png", "coco_url": "http://a.org/a.png", "license": 2, "height": 4}],
    "annotations": [{"image_id": 7, "id": 38, "caption": "one"}, {"image_id": 9, "id": 67, "caption": "two"},
                    {"image_id": 7, "id": 122, "caption": "three"}],
}  # fmt: skip
KARPATHY = {
    "images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "one"}, {"raw": "three"}]},
               {"filepath": ".", "filename": "b.png", "split": "val", "sentences": [{"raw": "two"}]}],
    "dataset": "flickr8k",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("captions_val2017.json", json.dumps(COCO), {"license": ["2", "3", "2"]}),
        ("captions_pretty.json", json.dumps(COCO, indent=2), {"id": ["38", "67", "122"]}),
        ("dataset_flickr8k.json", json.dumps(KARPATHY), {"split": ["train", "train", "val"]}),
        ("Flickr8k.token.txt", "a.png#0\tone\nb.png#0\ttwo\na.png#1\tthree\n", {"caption_number": ["0", "0", "1"]}),
        ("results_20130124.token", "a.png#0\tone\r\nb.png#0\ttwo\r\na.png#1\tthree\r\n", {}),
        ("results.csv", 'image_name| comment_number| comment\na.png| 0| one\nb.png| 0| two\na.png| 4 three\n', {}),
        ("captions.txt", "image,caption\na.png,one\nb.png,two\na.png,three\n", {}),
        ("captions.csv", "image,caption\na.png,one\nb.png,two\na.png,three\n", {}),
        ("metadata.csv", "file_name,text\na.png,one\nb.png,two\na.png,three\n", {}),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["one", "three"]}\n{"file_name": "b.png", "text": "two"}',
         {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [True, False])
def test_caption_files_as_published(
    tmp_path: Path, name: str, content: str, kept: dict[str, list[str]], beside: bool
) -> None:
    """Caption files beside their images (path: the folder), or elsewhere (path: the file, images: the folder)."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(RED)
    (images / "b.png").write_bytes(RED + b"b")
    file = (images if beside else tmp_path) / name
    file.write_text(content)
    names = {"path": str(images)} if beside else {"path": str(file), "images": str(images)}
    rows = rows_of(tmp_path, kind="folder", keep_columns=list(kept), **names)
    assert {(row.caption, row.image) for row in rows} == {("one", RED), ("two", RED + b"b"), ("three", RED)}
    assert len(rows) == 3
    for column, values in kept.items():
        assert [row.kept[column] for row in rows] == values


def test_imagefolder_with_metadata_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "deep").mkdir(parents=True)
        (tmp_path / split / "deep/a.png").write_bytes(RED)
        (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "deep/a.png", "text": "' + split + '"}')
    rows = rows_of(tmp_path, kind="folder", path=str(tmp_path))
    assert [(row.caption, row.image) for row in rows] == [("test", RED), ("train", RED)]


def test_img2datasets_plain_files(tmp_path: Path) -> None:
    """Tables and statistics at the top are not captions tables; captions are beside the images."""
    (tmp_path / "00000").mkdir()
    for number, caption in enumerate(("one", None)):
        (tmp_path / f"00000/{number:09d}.jpg").write_bytes(RED)
        fields = {"url": "http://a.org", "caption": "from the json", "key": f"{number:09d}", "status": "success"}
        (tmp_path / f"00000/{number:09d}.json").write_text(json.dumps(fields))
        if caption:
            (tmp_path / f"00000/{number:09d}.txt").write_text(caption)
    pq.write_table(pa.table({"url": ["x"], "caption": ["one"], "key": ["0"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 2}')
    rows = rows_of(tmp_path, kind="folder", path=str(tmp_path))
    assert [(row.caption, row.url, row.image) for row in rows] == [
        ("one", "http://a.org", RED), ("from the json", "http://a.org", RED)]  # fmt: skip


def test_parquet_structs_with_paths_in_subfolders(tmp_path: Path) -> None:
    """Hugging Face's layout: files in several folders, bytes or only a path, several captions per image."""
    images = [{"bytes": RED, "path": "x.png"}, {"bytes": None, "path": "pictures/a.png"},
              {"bytes": None, "path": "../secret.png"}, {"bytes": None, "path": None}]  # fmt: skip
    for split in ("test", "train"):
        (tmp_path / "data" / split / "pictures").mkdir(parents=True)
        (tmp_path / "data" / split / "pictures/a.png").write_bytes(RED + split.encode())
        table = pa.table({"image": images, "captions": [["a", "b"], ["c"], ["d"], ["e"]]})
        pq.write_table(table, tmp_path / "data" / split / "0000.parquet", row_group_size=2)
    (tmp_path / "data/secret.png").write_bytes(RED)
    rows = rows_of(tmp_path, kind="parquet_images", path=str(tmp_path / "data"), caption_column="captions")
    for half, end in ((rows[:5], b"test"), (rows[5:], b"train")):
        assert [(row.caption, row.image) for row in half] == [
            ("a", RED), ("b", RED), ("c", RED + end), ("d", None), ("e", None)]  # fmt: skip
    elsewhere = rows_of(tmp_path, kind="parquet_images", path=str(tmp_path / "data/train"), caption_column="captions",
                        images=str(tmp_path / "data/test"))  # fmt: skip
    assert elsewhere[2].image == RED + b"test"


def test_img2datasets_parquet_output(tmp_path: Path) -> None:
    table = pa.table({"jpg": [RED, None], "caption": ["a", "b"], "url": ["http://a.org", "http://b.org"],
                      "status": ["success", "failed_to_download"]})  # fmt: skip
    pq.write_table(table, tmp_path / "00000.parquet")
    rows = rows_of(tmp_path, kind="parquet_images", path=str(tmp_path), image_column="jpg")
    assert [(row.url, row.image) for row in rows] == [("http://a.org", RED), ("http://b.org", None)]


def test_a_datacomp_shard_is_adopted(tmp_path: Path, ray_session: None) -> None:
    """Tars with tables and statistics beside them; uid, url, sha256 and boxes are in the JSON."""
    uid, folder = "0123456789abcdef" * 2, tmp_path / "shards"
    folder.mkdir()
    fields = {"uid": uid, "url": "http://a.org", "face_bboxes": [[0.1, 0.1, 0.5, 0.5]], "sha256": "ab",
              "caption": "a face", "original_width": 640, "original_height": 480}  # fmt: skip
    write_tar(folder / "00000000.tar", [("000000000000.jpg", encoded(photo(64, 48))), ("000000000000.txt", b"a face"),
                                        ("000000000000.json", json.dumps(fields).encode()),
                                        ("000000000001.jpg", encoded(photo(64, 48, 1))),
                                        ("000000000001.json", b'{"text": ["first", "second"]}')])  # fmt: skip
    pq.write_table(pa.table({"uid": [uid], "status": ["success"]}), folder / "00000000.parquet")
    (folder / "00000000_stats.json").write_text("{}")
    source = {"kind": "webdataset", "path": str(folder), "keep_columns": ["face_bboxes"]}
    rows = read_rows(ingest(make_recipe(tmp_path, source)))
    assert [(row["caption"], row["drop_reason"]) for row in rows] == [("a face", None), ("first", None)]
    assert (rows[0]["uid"], rows[0]["url"], rows[0]["original_width"]) == (uid, "http://a.org", 640)
    assert json.loads(rows[0]["face_bboxes"]) == fields["face_bboxes"]


@pytest.mark.parametrize(("unit", "scale"), [("fractions", 1.0), ("pixels", 100.0)])
def test_boxes_of_a_column_are_blurred(tmp_path: Path, ray_session: None, unit: str, scale: float) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[::4] = 255
    boxes = [[[0.2 * scale, 0.2 * scale, 0.8 * scale, 0.8 * scale]], [], None, [[20.0, 20.0, 80.0 * scale, 80.0]]]
    images = [encoded(np.roll(pixels, n, 0), "PNG") for n in range(4)]
    pq.write_table(pa.table({"image": images, "caption": list("abcd"), "face_bboxes": boxes}), tmp_path / "a.parquet")
    recipe = make_recipe(tmp_path, {"kind": "parquet_images", "path": str(tmp_path / "a.parquet"),
                                    "blur_boxes_column": "face_bboxes", "blur_boxes_unit": unit})  # fmt: skip
    folder = ingest(recipe)
    rows = read_rows(folder)
    assert [row["drop_reason"] for row in rows] == [None, None, None, "invalid_boxes"]
    tar = (Path(folder) / "0000/0000000.tar").read_bytes()
    stored = [decode_rgb(tar[row["offset"] : row["offset"] + row["num_bytes"]]) for row in rows[:3]]
    assert [int(one[40:60, 40:60].std()) > 100 for one in stored] == [False, True, True]
    with pytest.raises(ValueError, match="cannot be blurred"):
        CurateRecipe.model_validate({"root": "x", "source": {"kind": "webdataset", "path": "x",
                                                             "blur_boxes_column": "boxes"}})  # fmt: skip


def test_tsv_without_quoting_keeps_every_row(tmp_path: Path) -> None:
    """CC3M and CC12M: a caption that begins with a quote does not join the rows behind it."""
    captions = [
        'a 5" screen',
        '"open quote only',
        "third\rwith a return",
        'fourth "quoted" word',
        '"closed" at its start',
    ]
    lines = [f"{caption}\thttp://a.org/{row}" for row, caption in enumerate(captions)]
    (tmp_path / "a.tsv").write_text("caption\turl\n" + "\n".join(lines) + "\n", newline="")
    assert [row["caption"] for row in read_text_rows(str(tmp_path / "a.tsv"))] == captions


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quoted_tsv_keeps_every_value(tmp_path: Path, quoting: Any) -> None:
    """As pandas writes it."""
    captions = ['a 5" screen', '"whole"', '"closed" at its start', "plain"]
    table = pd.DataFrame({"caption": captions, "url": "http://a.org"})
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting)
    assert [row["caption"] for row in read_text_rows(str(tmp_path / "a.tsv"))] == captions


def test_csv_that_ends_inside_quotes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('url,caption\nhttp://a.org/1,one\nhttp://a.org/2,"two\nhttp://a.org/3,three\n')
    rows = read_text_rows(str(tmp_path / "a.csv"))
    assert next(rows)["caption"] == "one"
    with pytest.raises(InputError, match=r"a\.csv: line 4: the file ends inside a quoted value"):
        next(rows)


@pytest.mark.parametrize(
    ("captions", "fields"),
    [(pa.array([{"text": "hi", "n": 1}]), " of its field text"), (pa.array([[["a"]]]), ""),
     (pa.array([[{"user": "what?", "answer": "a cat"}]]), " of its field user or answer")],
)  # fmt: skip
def test_structured_captions_are_refused_before_work(tmp_path: Path, captions: pa.Array, fields: str) -> None:
    pq.write_table(pa.table({"url": ["http://a.org/1"], "caption": captions}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"write the text{fields} to a column"):
        rows_of(tmp_path, kind="url_table", path=str(tmp_path / "a.parquet"))


def test_captions_in_fixed_size_lists_and_missing_numbers(tmp_path: Path) -> None:
    captions = pa.array([["a", "b"], None], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"url": ["http://a.org/1", "http://a.org/2"], "caption": captions}), tmp_path / "a.parquet")
    found = rows_of(tmp_path, kind="url_table", path=str(tmp_path / "a.parquet"))
    assert [(row.url, row.caption) for row in found] == [
        ("http://a.org/1", "a"), ("http://a.org/1", "b"), ("http://a.org/2", None)]  # fmt: skip
    pq.write_table(pa.table({"url": ["http://a.org/1"], "caption": [float("nan")]}), tmp_path / "a.parquet")
    assert rows_of(tmp_path, kind="url_table", path=str(tmp_path / "a.parquet"))[0].caption is None


def test_objects_in_json_are_no_captions(tmp_path: Path) -> None:
    rows = [{"url": "http://a.org/1", "caption": {"text": "hi"}}, {"url": "http://a.org/2", "caption": "two"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [row.caption for row in rows_of(tmp_path, kind="url_table", path=str(tmp_path / "a.jsonl"))] == [None, "two"]


def test_user_and_password_of_a_url_are_not_stored(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://me:secret@a.org/1.jpg,one\n")
    assert rows_of(tmp_path, kind="url_table", path=str(tmp_path / "a.csv"))[0].url == "http://a.org/1.jpg"
