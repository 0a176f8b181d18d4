"""The demo's source: a table of URLs into which copies, broken images and wrong captions are planted.

What was planted is written to `truth.jsonl`, one line a row of the table, so that the report can say what was
found. Nothing after this file reads it to decide anything.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg

from pairloom.demo.figures import read_rows
from pairloom.demo.pictures import Picture, compose, generator
from pairloom.demo.questions import llava_conversations
from pairloom.schemas.storage import storage

Plant = Literal["original", "exact_copy", "resized_copy", "recompressed_copy", "broken"]
COPY_FRACTION = 0.04  # of the pictures, for each kind of copy
MISMATCH_FRACTION = 0.30  # of the pictures get the caption of another one
NUM_OF_EACH_BROKEN = 8
NUM_QUESTION_ROUNDS = 2  # conversations about each picture
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Row:
    """One row of the table and what was planted in it; `picture` is the same for all copies of one picture."""

    path: str
    caption: str
    picture: int | None
    plant: Plant
    mismatched: bool = False


def build_source(folder: Path, base_url: str, num_pictures: int, seed: int = 0) -> Path:
    """Write images/, truth.jsonl and pairs.csv below `folder` unless they are there; returns the table's path."""
    table = folder / "pairs.csv"
    if table.exists():
        return table
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = _plant_rows(folder, num_pictures, seed)
    order = generator(seed, "row order").permutation(len(rows))
    rows = [rows[index] for index in order]
    truth = "".join(json.dumps({"url": f"{base_url}/{row.path}", **asdict(row)}) + "\n" for row in rows)
    storage.put_bytes(str(folder / "truth.jsonl"), truth.encode())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["url", "caption"])
    writer.writerows([f"{base_url}/{row.path}", row.caption] for row in rows)
    storage.put_bytes(str(table), text.getvalue().encode())
    return table


def build_conversations(folder: Path, curated: str) -> Path:
    """Conversations about the curated pictures, their images named by uid; returns the file's path.

    A picture with a planted wrong caption is among them: its questions come from what is drawn.
    """
    path = folder / "curated_conversations.json"
    uid_by_url: dict[str, str] = {}
    for row in read_rows(curated, ["url", "uid"]).to_pylist():
        uid_by_url[row["url"].partition("/images/")[2]] = row["uid"]
    records = json.loads((folder / "conversations.json").read_text())
    kept = []
    for record in records:
        uid = uid_by_url.get(record["image"].removeprefix("images/"))
        if uid is not None:
            kept.append({**record, "image": uid})
    storage.put_bytes(str(path), json.dumps(kept).encode())
    return path


def _plant_rows(folder: Path, num_pictures: int, seed: int) -> list[Row]:
    captions: list[str] = []
    rows: list[Row] = []
    conversations: list[dict[str, Any]] = []
    for picture in compose(num_pictures, seed):
        conversations += llava_conversations(picture, _path_of(picture.index), NUM_QUESTION_ROUNDS)
        captions.append(picture.caption)
        rows.append(Row(_path_of(picture.index), picture.caption, picture.index, "original"))
        _write(folder, rows[-1].path, encode_jpeg(picture))
        for copy, data in _copies(picture, seed):
            _write(folder, copy.path, data)
            rows.append(copy)
    storage.put_bytes(str(folder / "conversations.json"), json.dumps(conversations).encode())
    rows = _mismatch(rows, captions, seed)
    return rows + _broken_rows(folder, captions)


def _path_of(picture_index: int) -> str:
    return f"images/{picture_index:06d}.jpg"


def encode_jpeg(picture: Picture, quality: int = JPEG_QUALITY) -> bytes:
    """The bytes that the server serves for a picture."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture.image), quality=quality)
    return data


def _copies(picture: Picture, seed: int) -> Iterator[tuple[Row, bytes]]:
    draw = generator(seed, "copies", picture.index).random(3)
    name = f"images/{picture.index:06d}"
    if draw[0] < COPY_FRACTION:
        row = Row(f"{name}-mirror.jpg", picture.caption, picture.index, "exact_copy")
        yield row, encode_jpeg(picture)
    if draw[1] < COPY_FRACTION:
        small = cv2.resize(picture.image, (192, 192), interpolation=cv2.INTER_AREA)
        row = Row(f"{name}-small.jpg", picture.caption, picture.index, "resized_copy")
        yield row, simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=90)
    if draw[2] < COPY_FRACTION:
        row = Row(f"{name}-q50.jpg", picture.caption, picture.index, "recompressed_copy")
        yield row, encode_jpeg(picture, quality=50)


def _mismatch(rows: list[Row], captions: list[str], seed: int) -> list[Row]:
    """Give a fraction of the pictures, copies included, the caption of another picture."""
    draw = generator(seed, "mismatch")
    chosen = draw.permutation(len(captions))[: round(len(captions) * MISMATCH_FRACTION)]
    donor = dict(zip(chosen.tolist(), np.roll(chosen, 1).tolist(), strict=True))
    return [
        replace(row, caption=captions[donor[row.picture]], mismatched=captions[donor[row.picture]] != row.caption)
        if row.picture in donor
        else row
        for row in rows
    ]


def _broken_rows(folder: Path, captions: list[str]) -> list[Row]:
    """Rows that must end with a drop reason: failures of servers and files that the web has."""
    whole = (folder / "images/000000.jpg").read_bytes()
    bodies = {
        "truncated.jpg": whole[: len(whole) // 3],
        "page.jpg": b"<!DOCTYPE html><html><body>Not here any more</body></html>",
        "empty.jpg": b"",
        "bomb.png": png_bomb(20_000),
    }
    for name, data in bodies.items():
        _write(folder, f"images/{name}", data)
    rows = []
    for index in range(NUM_OF_EACH_BROKEN):
        caption = captions[index]
        paths = [f"images/{name}?{index}" for name in bodies]
        paths += [f"images/missing-{index}.jpg", f"status/500?{index}", f"status/403?{index}"]
        rows += [Row(path, caption, None, "broken") for path in paths]
        rows.append(Row(f"images/{index:06d}.jpg?empty", " ", None, "broken"))
        rows.append(Row(f"images/{index:06d}.jpg?long", "word " * 2000, None, "broken"))
    rows.append(Row("slow", captions[0], None, "broken"))
    return rows


def png_bomb(side: int) -> bytes:
    """A valid 1-bit PNG of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _write(folder: Path, path: str, data: bytes) -> None:
    (folder / path).write_bytes(data)
