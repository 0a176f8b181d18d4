"""The values of each sample that dedupe compares, from the raw tables: about 310 bytes, of which 192 are the thumbnail.

Spill files carry them as records to the task that decides about the sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.algorithms.captions import caption_hash
from pairloom.pipelines.algorithms.hamming256 import NUM_WORDS, Hashes256, unpack_hashes
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
HASH256_BYTES = 8 * NUM_WORDS
_HALF_HASH_HEX = 32  # 128 of 256 bits: one false match expected among 1e19 images


@dataclass(frozen=True)
class SampleRecords:
    """Samples with an image, as columns."""

    uid: npt.NDArray[np.uint64]  # [rows, 2]: two halves, big-endian
    received: npt.NDArray[np.uint64]  # [rows, 2]: half of the sha256 of the bytes as received
    stored: npt.NDArray[np.uint64]  # [rows, 2]: half of the sha256 of the bytes as stored
    pixels: npt.NDArray[np.uint64]  # [rows, 2]: hash of the pixels, else `received`
    caption: npt.NDArray[np.uint64]  # hash of the normalised caption
    domain: npt.NDArray[np.uint32]  # hash of the URL's host; 0: no URL
    phash: npt.NDArray[np.uint64]
    has_phash: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]  # [rows, 192]: RGB, row by row; zeros without a phash
    phash256: Hashes256  # zeros if missing; no words without a phash256 signal
    has_phash256: npt.NDArray[np.bool_]
    nearest_evaluation: npt.NDArray[np.int32]  # [rows, sets]: evaluation image with the nearest features, or -1
    similarity: npt.NDArray[np.float32]  # [rows, sets]: cosine to it
    area: npt.NDArray[np.int64]  # px, of the image as received
    score: npt.NDArray[np.float32]  # nan: none
    preference: npt.NDArray[np.int32]  # index in the preferred values; 0 is the best
    shard: npt.NDArray[np.int32]  # index over all manifests
    row: npt.NDArray[np.int32]  # in the raw table

    @property
    def num_rows(self) -> int:
        """Samples with an image."""
        return len(self.row)

    def rows(self) -> Rows:
        """The samples as records."""
        return pack({field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def of_rows(rows: Rows) -> SampleRecords:
        """Samples from records in any order, sorted by uid."""
        order = np.lexsort((rows["row"], rows["shard"], rows["uid"][:, 1], rows["uid"][:, 0]))
        return SampleRecords(**unpack(rows[order], [field.name for field in fields(SampleRecords)]))


def domain_hash(url: str | None) -> int:
    """32-bit hash of a URL's host without `www.`; 0 without a host."""
    host = (url or "").partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
    host = host.lower().removeprefix("www.")
    return int.from_bytes(hashlib.blake2b(host.encode("utf-8", "surrogatepass"), digest_size=4).digest()) if host else 0


def halves(column: pa.ChunkedArray, where: str) -> npt.NDArray[np.uint64]:
    """The first 32 hex digits of each value as [rows, 2] halves. Raises InputError."""
    text = "".join(value[:_HALF_HASH_HEX] for value in column.to_pylist())
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise InputError(f"{where}: a uid or sha256 is not hexadecimal; ingest it again") from error
    if len(data) != 16 * len(column):
        raise InputError(f"{where}: a uid or sha256 is shorter than 32 hex digits; ingest it again")
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def uid_texts(uids: npt.NDArray[np.uint64]) -> list[str]:
    """Halves [rows, 2] -> 32 hex digits."""
    text = uids.astype(">u8").tobytes().hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def read_sample_records(
    folders: Folders, prefer: PreferRecipe | None, num_sets: int, item: tuple[int, str]
) -> SampleRecords:
    """The samples of one raw shard, not yet compared with evaluation sets; `item`: (index, name) of the shard."""
    index, name = item
    url = table_url(folders.raw, name)
    raw = read_table(url, _COLUMNS + ([prefer.column] if prefer is not None else []))
    has_image = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
    chosen = pa.array(has_image, pa.bool_())
    scores = _signal(raw, folders.scores, name, pa.field(folders.score_column, pa.float32())).filter(chosen)
    hashes256 = _signal(raw, folders.hashes, name, pa.field("phash256", pa.binary(HASH256_BYTES))).filter(chosen)
    table = raw.filter(chosen)
    width = pc.coalesce(table["original_width"], table["width"], 0)
    height = pc.coalesce(table["original_height"], table["height"], 0)
    return SampleRecords(
        uid=halves(table["uid"], url),
        received=halves(pc.coalesce(table["sha256"], table["image_sha256"], table["uid"]), url),
        stored=halves(pc.coalesce(table["image_sha256"], table["sha256"], table["uid"]), url),
        pixels=halves(pc.coalesce(table["pixel_hash"], table["sha256"], table["image_sha256"], table["uid"]), url),
        caption=np.array([caption_hash(caption or "") for caption in table["caption"].to_pylist()], np.uint64),
        domain=np.array([domain_hash(url) for url in table["url"].to_pylist()], np.uint32),
        phash=pc.fill_null(table["phash"], 0).to_numpy(),
        has_phash=pc.is_valid(table["phash"]).to_numpy(),
        thumbnail=_thumbnails(table, url),
        phash256=_hashes256(hashes256) if folders.hashes is not None else np.empty((table.num_rows, 0), np.uint64),
        has_phash256=pc.is_valid(hashes256).to_numpy(),
        nearest_evaluation=np.full((table.num_rows, num_sets), -1, np.int32),
        similarity=np.zeros((table.num_rows, num_sets), np.float32),
        area=width.to_numpy().astype(np.int64) * height.to_numpy().astype(np.int64),
        score=scores.to_numpy().astype(np.float32),
        preference=_preferences(table, prefer),
        shard=np.full(table.num_rows, index, np.int32),
        row=np.flatnonzero(has_image).astype(np.int32),
    )


def _signal(raw: pa.Table, folder: str | None, name: str, field: pa.Field) -> pa.ChunkedArray:
    """A signal's column of one raw shard; nulls without such a signal."""
    if folder is None:
        return pa.chunked_array([pa.nulls(raw.num_rows, field.type)])
    signals = read_table(table_url(folder, name), ["uid", field.name])
    check_joined(raw, signals, f"{folder}: {name}")
    return signals[field.name]


def _hashes256(column: pa.ChunkedArray) -> Hashes256:
    empty = bytes(HASH256_BYTES)
    return unpack_hashes(b"".join(value or empty for value in column.to_pylist()))


def _preferences(table: pa.Table, prefer: PreferRecipe | None) -> npt.NDArray[np.int32]:
    """Index of each row's value in the preferred values; their number for other values."""
    if prefer is None:
        return np.zeros(table.num_rows, np.int32)
    indices = {value: index for index, value in reversed(list(enumerate(prefer.order)))}
    values = table[prefer.column].cast(pa.string()).to_pylist()
    return np.array([indices.get(value, len(prefer.order)) for value in values], np.int32)


def _thumbnails(table: pa.Table, where: str) -> npt.NDArray[np.uint8]:
    missing = pc.and_(pc.is_valid(table["phash"]), pc.is_null(table["thumbnail"]))
    if pc.any(missing).as_py():
        raise InputError(f"{where}: a sample has a phash but no thumbnail; ingest it again")
    empty = bytes(THUMBNAIL_BYTES)
    data = b"".join(thumbnail or empty for thumbnail in table["thumbnail"].to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL_BYTES)


def read_captions(url: str, rows: npt.NDArray[np.int32]) -> list[str]:
    """Captions of the given rows of one raw table."""
    column = read_table(url, ["caption"])["caption"].take(pa.array(rows))
    return [caption or "" for caption in column.to_pylist()]
