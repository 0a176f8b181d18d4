"""Arrow schemas of the tables: SAMPLE (one row per input row), SIGNAL tables, DEDUPE and SELECTION.

All tables of one raw shard have the same rows in the same order and are joined by position. `uid_checksum` in a
table's metadata shows that two tables belong together.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.columns import THUMBNAIL_SIDE
from pairloom.schemas.storage import storage

FOOTER_BYTES = 1 << 16  # first read from the end of a remote table; contains nearly all footers
PHASH_ALGORITHM = "dct32-8x8-median64"  # grey, 32 x 32, DCT, top-left 8 x 8, > median of all 64

PIXEL_HASH_ALGORITHM = "xxh3-128"

STATUS_SUCCESS = "success"
STATUS_DROPPED = "dropped"

SAMPLE = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),  # 32 hex digits
        pa.field("key", pa.string()),  # name in the tar; null when dropped
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # success | dropped
        pa.field("drop_reason", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),  # px, as stored
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),  # px, as received
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the bytes as received
        pa.field("image_sha256", pa.string()),  # of the bytes as stored
        pa.field("pixel_hash", pa.string()),  # 32 hex digits: size and decoded pixels
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary(THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3)),  # RGB, row by row
        pa.field("mime_type", pa.string()),
        pa.field("offset", pa.int64()),  # of the image member's bytes in the tar
        pa.field("num_bytes", pa.int64()),  # of the image member
    ],
    metadata={"phash_algorithm": PHASH_ALGORITHM, "pixel_hash_algorithm": PIXEL_HASH_ALGORITHM},
)
"""One row per input row, kept or dropped; the source's own columns follow these."""

LATER_COLUMNS = {"pixel_hash": pa.string()}
"""Columns that are missing in tables of earlier releases; `read_table` adds them as nulls."""

CURATED = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("mime_type", pa.string()),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("duplicate_group", pa.string()),  # smallest uid of its duplicates; folds are a function of it
        pa.field("raw_shard", pa.string(), nullable=False),  # name of the raw shard
        pa.field("raw_row", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
    ]
)
"""One row per sample of a curated shard, in the order of the tar."""

DEDUPE = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("drop_reason", pa.string()),  # exact_duplicate | perceptual_duplicate | ...
        pa.field("duplicate_of", pa.string()),  # the uid kept instead
        pa.field("distance", pa.int32()),  # Hamming distance to the kept image or the evaluation image, bits
        pa.field("similarity", pa.float32()),  # cosine of their features; null: not decided by features
        pa.field("evaluation_image", pa.string()),  # set and name of the near evaluation image
        pa.field("duplicate_group", pa.string()),  # smallest uid of the component; null without an image
    ]
)

SELECTION = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("drop_reason", pa.string()),
        pa.field("duplicate_of", pa.string()),
        pa.field("duplicate_group", pa.string()),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
"""Every uid with its decision; the values used by the rules follow these columns."""


def make_uid(url: str | None, caption: str, image_sha256: str | None = None) -> str:
    """Identity of a sample: the first 128 bits of sha256 over url (or image sha256), NUL, caption, as 32 hex digits."""
    identity = url if url else (image_sha256 or "")
    text = f"{identity}\0{caption}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]


def fold_of(duplicate_group: str, num_folds: int) -> int:
    """Fold of a duplicate group, 0 .. num_folds-1; all duplicates are in the same fold."""
    digest = hashlib.sha256(f"fold\0{duplicate_group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_folds


def uid_checksum(uids: pa.ChunkedArray | pa.Array) -> str:
    """Checksum of the uids of a table in order, as 16 hex digits."""
    digest = hashlib.sha256()
    for chunk in uids.chunks if isinstance(uids, pa.ChunkedArray) else [uids]:
        if len(chunk):
            _, offsets, text = chunk.buffers()  # one contiguous buffer: faster than a loop over uids
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            digest.update(memoryview(text)[ends[0] : ends[-1]])
    return digest.hexdigest()[:16]


def table_bytes(table: pa.Table) -> bytes:
    """`table` as parquet; equal rows give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=65536)
    return sink.getvalue()


def write_table(url: str, table: pa.Table) -> None:
    """Write a table of one shard atomically, with its `uid_checksum` in the metadata."""
    metadata = dict(table.schema.metadata or {})
    metadata[b"uid_checksum"] = uid_checksum(table["uid"]).encode()
    storage.put_bytes(url, table_bytes(table.replace_schema_metadata(metadata)))


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table of one shard, all columns or some. Raises InputError if it is missing or not parquet."""
    try:
        source: Any = storage.local_path(url) if storage.is_local(url) else pa.BufferReader(storage.read_bytes(url))
        later = LATER_COLUMNS.keys() & set(columns or ())
        lacking = later - set(pq.read_schema(source).names) if later else set()
        existing = columns and [name for name in columns if name not in lacking]
        table = pq.read_table(source, columns=existing, partitioning=None)
        for name in sorted(lacking):
            table = table.append_column(name, pa.nulls(table.num_rows, LATER_COLUMNS[name]))
        return table
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such table; check the path") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{url}: not a readable parquet table: {error}; restore it") from error


def read_table_schema(url: str) -> pa.Schema:
    """Columns and metadata of a table, from its footer alone. Raises FileNotFoundError, OSError, pa.ArrowException."""
    if storage.is_local(url):
        return pq.read_schema(storage.local_path(url))
    num_bytes = storage.size(url)
    first = max(0, num_bytes - FOOTER_BYTES)
    end = storage.read_range(url, first, num_bytes - first)
    length = int.from_bytes(end[-8:-4], "little") + 8
    if length > len(end):
        end = storage.read_range(url, num_bytes - length, length)
    return pq.read_schema(pa.BufferReader(end))


def check_joined(left: pa.Table, right: pa.Table, where: str) -> None:
    """Raise InputError unless both tables have the same uids in the same order (by their checksums)."""
    checksums = [(table.schema.metadata or {}).get(b"uid_checksum") for table in (left, right)]
    if left.num_rows != right.num_rows or checksums[0] != checksums[1]:
        raise InputError(
            f"{where}: tables of different rows ({left.num_rows} and {right.num_rows}); "
            "remove the folder of the later step and run the same command again"
        )
