"""Raw folders for tests of later steps, with the writer and the hashes of ingest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from pairloom.pipelines.images.hashes import exact_hash, hash_pixels
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest, table_url
from pairloom.schemas.data_set.shard import ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tables import SAMPLE, STATUS_DROPPED, STATUS_SUCCESS, make_uid, write_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.images.columns import EXTENSIONS
from pairloom.schemas.images.decode import Pixels, decode_rgb, read_header


@dataclass(frozen=True)
class Pair:
    """One input row: the bytes of its image, or the drop reason."""

    image: bytes | DropReason
    caption: str
    url: str


def photograph(seed: int, width: int = 96, height: int = 72) -> Pixels:
    """An image of soft blobs: its hash is stable under encoding, and far from hashes of other seeds."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth: Any = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.uint8)


def encoded(pixels: Pixels, image_format: str = "JPEG", quality: int = 92) -> bytes:
    """Pixels as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **({"quality": quality} if image_format == "JPEG" else {}))
    return buffer.getvalue()


def photographs(num: int, captions: Sequence[str] = ("a picture of blobs",)) -> list[Pair]:
    """Different images, each with its own caption and URL."""
    return [
        Pair(encoded(photograph(seed)), f"{captions[seed % len(captions)]} number {seed}", f"http://a.test/{seed}.jpg")
        for seed in range(num)
    ]


def build_raw(root: str | Path, pairs: Sequence[Pair], samples_per_shard: int = 10, name: str = "main") -> str:
    """Write a complete raw folder and point LATEST at it. Returns the folder."""
    digest = hashlib.sha256(repr([(pair.url, pair.caption) for pair in pairs]).encode()).hexdigest()
    folder = Path(root) / "raw" / name / digest[:8]
    entries = []
    for index, start in enumerate(range(0, len(pairs), samples_per_shard)):
        entries.append(_build_shard(folder, index, pairs[start : start + samples_per_shard]))
    save_manifest(str(folder), Manifest(name, "raw", digest, [], entries))
    set_latest(str(folder))
    return str(folder)


def _build_shard(folder: Path, index: int, pairs: Sequence[Pair]) -> ShardEntry:
    shard = shard_name(index)
    tar = folder / f"{shard}.tar"
    tar.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(str(tar)) as writer:
        rows = [_row(writer, make_key(index, row), pair) for row, pair in enumerate(pairs)]
    table = pa.Table.from_pylist(rows, schema=SAMPLE)
    write_table(table_url(str(folder), shard), table)
    return ShardEntry(shard, len(rows), writer.num_samples, writer.num_bytes, writer.close())


def _row(writer: ShardWriter, key: str, pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"uid": make_uid(pair.url, pair.caption), "url": pair.url, "caption": pair.caption}
    if isinstance(pair.image, DropReason):
        return {**row, "status": STATUS_DROPPED, "drop_reason": pair.image.value}
    header = read_header(pair.image)
    pixels = decode_rgb(pair.image, header)
    hashes = hash_pixels(pixels)
    digest = hashlib.sha256(pair.image).hexdigest()
    extension = EXTENSIONS[header.mime_type]
    members = {extension: pair.image, "txt": pair.caption.encode(), "json": b"{}"}
    place = writer.add(key, members)[extension]
    return {
        **row,
        "key": key,
        "status": STATUS_SUCCESS,
        "width": header.width,
        "height": header.height,
        "original_width": header.width,
        "original_height": header.height,
        "sha256": digest,
        "image_sha256": digest,
        "pixel_hash": exact_hash(pixels, pixels.shape[:2]),
        "phash": hashes.phash,
        "thumbnail": hashes.thumbnail,
        "mime_type": header.mime_type,
        "offset": place.offset,
        "num_bytes": place.num_bytes,
    }
