"""Every kind of source and format gives its rows, and names its errors."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.data_set.tables import make_uid
from pairloom.schemas.errors import InputError, RecipeError
from tests.support.http_server import TestServer
from tests.support.ingest_builder import (
    NUM_IMAGES,
    changes,
    check_offsets,
    make_recipe,
    read_rows,
    url_rows,
    url_source,
    write_csv,
    write_tar,
)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_table_format_gives_the_same(
    tmp_path: Path, image_server: TestServer, ray_session: None, kind: str, packing: str
) -> None:
    rows = url_rows(image_server, ["0.jpg", "none.jpg", "1.jpg"])
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
    pack: Any = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    path.write_bytes(pack(data))
    found = read_rows(ingest(make_recipe(tmp_path / "out", url_source(path, keep_columns=["license"]))))
    assert [(row["caption"], row["drop_reason"], row["license"]) for row in found] == [
        (rows[0]["caption"], None, "cc-0"), (rows[1]["caption"], "http_not_found", "cc-1"),
        (rows[2]["caption"].replace("\t", "\t"), None, "cc-2")]  # fmt: skip


def test_text_that_is_no_utf8(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    url = f"{image_server.url}/files/0.jpg".encode()
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
        ("a.csv.gz", gzip.compress(b"url,caption\n" + b"x,y\n" * 9999, mtime=0)[:-20], "cannot be read"),
        ("a.csv.zst", zstandard.ZstdCompressor().compress(b"url,caption\n" + os.urandom(9999))[:-20], "cannot be read"),
        ("a.parquet.gz", b"this is not gzip", "cannot be read"),
        ("a.csv", b"", "no rows in 1 files"),
        ("a.csv", b"url,caption\n", "no rows"),
        ("a.json", b'[{"url": "x", "caption": "y"}, ', "not a JSON array"),
        ("a.json", b"7", "none of 1 rows can be read"),
        ("a.csv", "url,caption\nx,y\n".encode("utf-16"), "save the table as UTF-8 text"),
        ("a.csv", b"\0" * 1000, "NUL bytes"),
        ("a.csv", b"url,caption\nx," + b"y" * (17 << 20), "line 2: field larger than field limit"),
        ("a.csv", b"a;" * 500 + b"url;caption\nx;y\n", r"no column url; there are a;a;[a;]{56}$"),
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


def test_types_of_kept_columns(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    url = f"{image_server.url}/files/0.jpg"
    table = pa.table({"url": [url], "caption": ["x"], "score": pa.array([0.5], pa.float32()),
                      "tags": [["a", "b"]], "kind": pa.array(["photo"]).dictionary_encode()})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    source = url_source(tmp_path / "a.parquet", keep_columns=["score", "tags", "kind"])
    [row] = read_rows(ingest(make_recipe(tmp_path / "out", source)))
    assert (row["score"], row["tags"], row["kind"]) == (0.5, ["a", "b"], "photo")
    write_csv(tmp_path / "b.csv", [{"url": url, "caption": "y", "score": 1, "tags": "", "kind": ""}])
    with pytest.raises(InputError, match=r"b\.csv: column score is string, in other files float"):
        ingest(make_recipe(tmp_path / "out2", {**source, "path": str(tmp_path / "*.*")}))


def test_large_row_groups_are_read_in_slices(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    rows = url_rows(image_server, [f"{index % NUM_IMAGES}.jpg" for index in range(100)])
    pq.write_table(pa.Table.from_pylist(rows[:70]), tmp_path / "a.parquet", row_group_size=30)
    pq.write_table(pa.Table.from_pylist([]).from_pylist(rows[:0], pa.Table.from_pylist(rows).schema),
                   tmp_path / "b.parquet")  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows[70:]), tmp_path / "c.parquet", row_group_size=4)
    folder = ingest(make_recipe(tmp_path / "out", url_source(tmp_path), samples_per_shard=9))
    assert [row["caption"] for row in read_rows(folder)] == [row["caption"] for row in rows]


def test_uids_of_the_source_stay(tmp_path: Path, image_server: TestServer, ray_session: None) -> None:
    uid = "0123456789abcdef0123456789abcdef"
    rows = [{**row, "uid": given} for row, given in zip(url_rows(image_server, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
                                                        [uid, uid, "user 7", "user 7"], strict=True)]  # fmt: skip
    found = read_rows(ingest(make_recipe(tmp_path, url_source(write_csv(tmp_path / "a.csv", rows)))))
    assert [row["uid"] for row in found[:2]] == [uid, uid]
    assert [row["drop_reason"] for row in found] == [None, "duplicate_row", None, None]


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
        (None, None, "second_image"),
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
