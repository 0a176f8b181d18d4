"""The few bytes of each sample that dedupe compares, read from the raw tables: about 310 a sample, of which 192 are
the thumbnail. They travel as records (`spill`) to the task that decides about the sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.algorithms.captions import caption_hash
from pairloom.pipelines.algorithms.hamming256 import NUM_WORDS, WideHashes, unpack_hashes
from pairloom.pipelines.engine.batches import Folders
from pairloom.pipelines.engine.shuffle import Rows, pack, unpack
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, check_joined, read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.columns import THUMBNAIL_SIDE
from pairloom.schemas.recipes.dedupe import PreferRecipe

THUMBNAIL_BYTES = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
_COLUMNS = ["uid", "url", "status", "caption", "sha256", "image_sha256", "pixel_hash", "phash", "original_width",
            "original_height", "width", "height", "thumbnail"]  # fmt: skip
WIDE_BYTES = 8 * NUM_WORDS
_HALF_HASH_HEX = 32  # 128 of 256 bits: one false match is expected among 1e19 images


@dataclass(frozen=True)
class Slim:
    """Samples that have an image, column by column."""

    uid: npt.NDArray[np.uint64]  # [rows, 2]: two halves, big-endian
    received: npt.NDArray[np.uint64]  # [rows, 2]: half of the sha256 of the bytes as received
    stored: npt.NDArray[np.uint64]  # [rows, 2]: half of the sha256 of the bytes as stored
    pixels: npt.NDArray[np.uint64]  # [rows, 2]: hash of the pixels; where there is none, `received`
    caption: npt.NDArray[np.uint64]  # hash of the normalised caption
    domain: npt.NDArray[np.uint32]  # hash of the URL's host; 0 where there is no URL
    phash: npt.NDArray[np.uint64]
    has_phash: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]  # [rows, 192]: RGB, row by row; zeros where there is no phash
    phash256: WideHashes  # zeros where there is none; no words at all without such a signal
    has_phash256: npt.NDArray[np.bool_]
    alike: npt.NDArray[np.int32]  # [rows, sets]: place of the evaluation image that has the nearest features, or -1
    similarity: npt.NDArray[np.float32]  # [rows, sets]: their cosine
    area: npt.NDArray[np.int64]  # px, of the image as received
    score: npt.NDArray[np.float32]  # nan where there is none
    preference: npt.NDArray[np.int32]  # place in the preferred values; 0 is the best
    shard: npt.NDArray[np.int32]  # place in the manifest
    row: npt.NDArray[np.int32]  # in the raw table

    @property
    def num_rows(self) -> int:
        """Samples with an image."""
        return len(self.row)

    def rows(self) -> Rows:
        """The samples as records."""
        return pack({field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def of_rows(rows: Rows) -> Slim:
        """The samples of some records in the order of their uids, whatever the order of the records."""
        order = np.lexsort((rows["row"], rows["shard"], rows["uid"][:, 1], rows["uid"][:, 0]))
        return Slim(**unpack(rows[order], [field.name for field in fields(Slim)]))


def domain_hash(url: str | None) -> int:
    """32 bits of a URL's host, `www.` aside; 0 where there is none."""
    host = (url or "").partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
    host = host.lower().removeprefix("www.")
    return int.from_bytes(hashlib.blake2b(host.encode("utf-8", "surrogatepass"), digest_size=4).digest()) if host else 0


def halves(column: pa.ChunkedArray, where: str) -> npt.NDArray[np.uint64]:
    """The first 32 hex digits of each value as two uint64 halves."""
    text = "".join(value[:_HALF_HASH_HEX] for value in column.to_pylist())
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise InputError(f"{where}: a uid or sha256 is not hexadecimal") from error
    if len(data) != 16 * len(column):
        raise InputError(f"{where}: a uid or sha256 is shorter than 32 hexadecimal digits")
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def uid_texts(uids: npt.NDArray[np.uint64]) -> list[str]:
    """Two halves -> 32 hex digits."""
    text = uids.astype(">u8").tobytes().hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def read_slim(folders: Folders, prefer: PreferRecipe | None, num_sets: int, item: tuple[int, str]) -> Slim:
    """The samples of one raw shard; `item` is its place in the manifest and its name. Nothing is alike yet."""
    place, name = item
    url = table_url(folders.raw, name)
    raw = read_table(url, _COLUMNS + ([prefer.column] if prefer is not None else []))
    has_image = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
    chosen = pa.array(has_image, pa.bool_())
    scores = _signal(raw, folders.scores, name, pa.field(folders.score_column, pa.float32())).filter(chosen)
    wide = _signal(raw, folders.hashes, name, pa.field("phash256", pa.binary(WIDE_BYTES))).filter(chosen)
    table = raw.filter(chosen)
    width = pc.coalesce(table["original_width"], table["width"], 0)
    height = pc.coalesce(table["original_height"], table["height"], 0)
    return Slim(
        uid=halves(table["uid"], url),
        received=halves(pc.coalesce(table["sha256"], table["image_sha256"], table["uid"]), url),
        stored=halves(pc.coalesce(table["image_sha256"], table["sha256"], table["uid"]), url),
        pixels=halves(pc.coalesce(table["pixel_hash"], table["sha256"], table["image_sha256"], table["uid"]), url),
        caption=np.array([caption_hash(caption or "") for caption in table["caption"].to_pylist()], np.uint64),
        domain=np.array([domain_hash(url) for url in table["url"].to_pylist()], np.uint32),
        phash=pc.fill_null(table["phash"], 0).to_numpy(),
        has_phash=pc.is_valid(table["phash"]).to_numpy(),
        thumbnail=_thumbnails(table, url),
        phash256=_wide_hashes(wide) if folders.hashes is not None else np.empty((table.num_rows, 0), np.uint64),
        has_phash256=pc.is_valid(wide).to_numpy(),
        alike=np.full((table.num_rows, num_sets), -1, np.int32),
        similarity=np.zeros((table.num_rows, num_sets), np.float32),
        area=width.to_numpy().astype(np.int64) * height.to_numpy().astype(np.int64),
        score=scores.to_numpy().astype(np.float32),
        preference=_preferences(table, prefer),
        shard=np.full(table.num_rows, place, np.int32),
        row=np.flatnonzero(has_image).astype(np.int32),
    )


def _signal(raw: pa.Table, folder: str | None, name: str, field: pa.Field) -> pa.ChunkedArray:
    """A signal's column of one raw shard; null where there is no such signal."""
    if folder is None:
        return pa.chunked_array([pa.nulls(raw.num_rows, field.type)])
    signals = read_table(table_url(folder, name), ["uid", field.name])
    check_joined(raw, signals, f"{folder}: {name}")
    return signals[field.name]


def _wide_hashes(column: pa.ChunkedArray) -> WideHashes:
    empty = bytes(WIDE_BYTES)
    return unpack_hashes(b"".join(value or empty for value in column.to_pylist()))


def _preferences(table: pa.Table, prefer: PreferRecipe | None) -> npt.NDArray[np.int32]:
    """Place of each row's value in the preferred ones; their number for any other value."""
    if prefer is None:
        return np.zeros(table.num_rows, np.int32)
    places = {value: place for place, value in reversed(list(enumerate(prefer.order)))}
    values = table[prefer.column].cast(pa.string()).to_pylist()
    return np.array([places.get(value, len(prefer.order)) for value in values], np.int32)


def _thumbnails(table: pa.Table, where: str) -> npt.NDArray[np.uint8]:
    missing = pc.and_(pc.is_valid(table["phash"]), pc.is_null(table["thumbnail"]))
    if pc.any(missing).as_py():
        raise InputError(f"{where}: a sample has a phash but no thumbnail")
    empty = bytes(THUMBNAIL_BYTES)
    data = b"".join(thumbnail or empty for thumbnail in table["thumbnail"].to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL_BYTES)


def read_captions(url: str, rows: npt.NDArray[np.int32]) -> list[str]:
    """Captions of some rows of one raw table."""
    column = read_table(url, ["caption"])["caption"].take(pa.array(rows))
    return [caption or "" for caption in column.to_pylist()]
