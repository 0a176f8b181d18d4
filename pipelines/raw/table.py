"""The table of one raw shard: one row per input row; its metadata holds the shard's manifest entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.images.stored_image import StoredImage
from pairloom.pipelines.sources.source import SourceRow
from pairloom.schemas.data_set.manifest import SHARD_METADATA, ShardEntry, count_reasons, table_url
from pairloom.schemas.data_set.shard import ByteRange
from pairloom.schemas.data_set.tables import (
    SAMPLE,
    STATUS_DROPPED,
    STATUS_SUCCESS,
    read_table_schema,
    table_bytes,
    uid_checksum,
)
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.storage import storage

_OF_THE_IMAGE = ("width", "height", "original_width", "original_height", "sha256", "image_sha256", "pixel_hash",
                 "phash", "thumbnail", "mime_type", "offset", "num_bytes")  # fmt: skip
MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True)
class PlacedImage:
    """An image in its tar."""

    key: str
    image: StoredImage
    byte_range: ByteRange


@dataclass(frozen=True)
class ShardResult:
    """One finished raw shard."""

    entry: ShardEntry
    drop_counts: Mapping[str, int]
    checksum: str  # of uids, image hashes and drop reasons in order; the only checksum of an adopted tar


def make_table(
    rows: Sequence[SourceRow],
    uids: Sequence[str],
    outcomes: Sequence[PlacedImage | SampleError],
    kept: pa.Schema,
) -> pa.Table:
    """The table with the columns of SAMPLE and `kept`, in input order."""
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLE.names}
    for row, uid, outcome in zip(rows, uids, outcomes, strict=True):
        values = (
            dropped_values(outcome) if isinstance(outcome, SampleError) else stored_values(outcome, row.original_size)
        )
        values.update(uid=uid, url=row.url, caption=row.caption)
        for name, column in columns.items():
            column.append(values.get(name))
    arrays = [pa.array(columns[field.name], field.type) for field in SAMPLE]
    arrays += [pa.array([row.kept.get(field.name) for row in rows], field.type) for field in kept]
    schema = pa.schema([*SAMPLE, *kept], metadata=SAMPLE.metadata)
    return pa.Table.from_arrays(arrays, schema=schema)


def dropped_values(error: SampleError) -> dict[str, Any]:
    """The columns of a dropped row."""
    message = " ".join(str(error).split())[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
    return {"status": STATUS_DROPPED, "drop_reason": error.drop_reason.value, "error_message": message}


def stored_values(placed: PlacedImage, original_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The columns of a stored sample."""
    image = placed.image
    original_width, original_height = original_size or (image.original_width, image.original_height)
    return {
        "key": placed.key,
        "status": STATUS_SUCCESS,
        "width": image.width,
        "height": image.height,
        "original_width": original_width,
        "original_height": original_height,
        "sha256": image.sha256,
        "image_sha256": image.image_sha256,
        "pixel_hash": image.pixel_hash,
        "phash": image.phash,
        "thumbnail": image.thumbnail,
        "mime_type": image.mime_type,
        "offset": placed.byte_range.offset,
        "num_bytes": placed.byte_range.num_bytes,
    }


def drop_duplicate_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """The table with these rows dropped as duplicate_row, unless they are dropped already."""
    is_repeated = np.zeros(table.num_rows, bool)
    is_repeated[rows] = True
    is_repeated &= np.asarray(pc.equal(table["status"], STATUS_SUCCESS))
    mask = pa.array(is_repeated)
    changes = {"status": STATUS_DROPPED, "drop_reason": DropReason.DUPLICATE_ROW.value,
               "error_message": "the same uid came earlier", "key": None}  # fmt: skip
    changes |= dict.fromkeys(name for name in _OF_THE_IMAGE if name in table.column_names)
    for name, value in changes.items():
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        column = pc.if_else(mask, pa.scalar(value, field.type), table[name])
        table = table.set_column(index, field, column)
    return table


def put_table(folder: str, table: pa.Table, entry: ShardEntry) -> ShardResult:
    """Write a shard's table, which marks it as done. If another attempt was first, returns its result."""
    url = table_url(folder, entry.name)
    result = _result(table, entry)
    if storage.put_if_absent(url, table_bytes(_with_result(table, result))):
        return result
    return read_result(folder, entry.name)


def replace_table(folder: str, table: pa.Table, entry: ShardEntry) -> ShardResult:
    """Overwrite a shard's table."""
    result = _result(table, entry)
    storage.put_bytes(table_url(folder, entry.name), table_bytes(_with_result(table, result)))
    return result


def _result(table: pa.Table, entry: ShardEntry) -> ShardResult:
    digest = hashlib.sha256()
    for name in ("uid", "image_sha256", "drop_reason"):
        digest.update("\n".join(value or "" for value in table[name].to_pylist()).encode())
    return ShardResult(entry, dict(sorted(count_reasons(table["drop_reason"]).items())), digest.hexdigest())


def _with_result(table: pa.Table, result: ShardResult) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    metadata[SHARD_METADATA] = json.dumps(asdict(result), sort_keys=True).encode()
    metadata[b"uid_checksum"] = uid_checksum(table["uid"]).encode()
    return table.replace_schema_metadata(metadata)


def read_result(folder: str, name: str) -> ShardResult:
    """The result of a finished shard, from the metadata of its table. Raises InputError."""
    url = table_url(folder, name)
    try:
        schema = read_table_schema(url)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: not a readable table: {error}; remove it and run the same command again") from error
    fields = json.loads(schema.metadata[SHARD_METADATA])
    return ShardResult(ShardEntry(**fields["entry"]), fields["drop_counts"], fields["checksum"])
