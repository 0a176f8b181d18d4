"""One curated shard: kept samples of raw shards with their decisions, written as a tar and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pairloom.schemas.data_set.json_values import json_bytes
from pairloom.schemas.data_set.manifest import ShardEntry, entry_of_table, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader, ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tables import CURATED, check_joined, read_table, write_table
from pairloom.schemas.images.columns import EXTENSIONS
from pairloom.schemas.storage import storage

# Added columns; the prefix avoids the names of the source's own columns.
WEIGHT, GROUP, RAW_SHARD, RAW_ROW = "pairloom.weight", "pairloom.group", "pairloom.raw_shard", "pairloom.raw_row"
_HASHES_OF_PIXELS = {"pixel_hash", "phash", "thumbnail"}
_NOT_IN_JSON = {"status", "drop_reason", "error_message", "offset", "num_bytes"}  # nor columns with the prefix
_TAR_SHA256, _TAR_BYTES = b"tar_sha256", b"tar_num_bytes"  # metadata of the table, which marks the shard as done

Sample: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The arguments that all tasks share."""

    raw_folder: str
    selection_folder: str
    folder: str
    seed: int


def read_kept(job: Job, shard: ShardEntry) -> pa.Table:
    """The kept samples of one raw shard: raw columns, decision, and raw position."""
    selection = read_table(table_url(job.selection_folder, shard.name), ["kept", "weight", "duplicate_group"])
    raw = read_table(table_url(job.raw_folder, shard.name))
    check_joined(raw, selection, f"{job.selection_folder}: {shard.name}")
    rows = pa.array(np.flatnonzero(np.asarray(selection["kept"])))
    kept = raw.drop_columns([name for name in raw.column_names if name in _HASHES_OF_PIXELS]).take(rows)
    decisions = selection.take(rows)
    for column, values in (
        (WEIGHT, decisions["weight"]),
        (GROUP, decisions["duplicate_group"]),
        (RAW_SHARD, pa.array([shard.name] * len(rows), pa.string())),
        (RAW_ROW, rows.cast(pa.int32())),
    ):
        kept = kept.append_column(column, values)
    return kept


class Readers:
    """Opens each raw tar of a group once; a remote tar is copied to local disk first."""

    def __init__(self, raw_folder: str, shards: Sequence[ShardEntry], scratch: str) -> None:
        self._urls = {}
        for shard in shards:
            named = entry_of_table(read_table(table_url(raw_folder, shard.name), ["uid"]), shard)
            self._urls[shard.name] = tar_url(raw_folder, named)
        self._scratch = scratch
        self._open: dict[str, ShardReader] = {}

    def read(self, sample: Sample) -> bytes:
        """The bytes of one sample's image."""
        raw_shard = sample[RAW_SHARD]
        if raw_shard not in self._open:
            url = self._urls[raw_shard]
            if not storage.is_local(url):
                copy = str(Path(self._scratch) / raw_shard.replace("/", "-"))
                storage.get_file(url, copy)
                url = copy
            self._open[raw_shard] = ShardReader(url)
        return self._open[raw_shard].read(sample["offset"], sample["num_bytes"])

    def close(self) -> None:
        """Close all tars."""
        for reader in self._open.values():
            reader.close()


def write_shard(folder: str, index: int, samples: Sequence[Sample], read: Callable[[Sample], bytes]) -> ShardEntry:
    """Write one curated shard: the tar, then its table, which marks it as done."""
    name = shard_name(index)
    with storage.build_locally(storage.join(folder, f"{name}.tar")) as path:
        with ShardWriter(path) as writer:
            rows = [_add(writer, make_key(index, row), sample, read(sample)) for row, sample in enumerate(samples)]
        digest = writer.close()
    table = pa.Table.from_pylist(rows, schema=CURATED)
    marker = {_TAR_SHA256: digest.encode(), _TAR_BYTES: str(writer.num_bytes).encode()}
    write_table(table_url(folder, name), table.replace_schema_metadata(marker))
    return ShardEntry(name, len(rows), len(rows), writer.num_bytes, digest)


def _add(writer: ShardWriter, key: str, sample: Sample, image: bytes) -> dict[str, Any]:
    """Append one sample to the tar. Returns its row of the curated table."""
    extension = EXTENSIONS[sample["mime_type"]]
    caption = sample["caption"] or ""
    notes = {
        name: value for name, value in sample.items() if name not in _NOT_IN_JSON and not name.startswith("pairloom.")
    }
    decision = {"key": key, "weight": sample[WEIGHT], "duplicate_group": sample[GROUP]}
    members = {
        extension: image,
        "txt": caption.encode("utf-8", "replace"),
        "json": json_bytes({**notes, **decision}),
    }
    byte_range = writer.add(key, members)[extension]
    return {
        **{name: sample[name] for name in ("uid", "url", "width", "height", "image_sha256", "mime_type")},
        **decision,
        "caption": caption,
        "raw_shard": sample[RAW_SHARD],
        "raw_row": sample[RAW_ROW],
        "offset": byte_range.offset,
        "num_bytes": byte_range.num_bytes,
    }


def read_entry(folder: str, name: str) -> ShardEntry:
    """The manifest entry of a finished shard, from its table."""
    table = read_table(table_url(folder, name), ["uid"])
    metadata = table.schema.metadata
    digest = metadata[_TAR_SHA256].decode()
    return ShardEntry(name, table.num_rows, table.num_rows, int(metadata[_TAR_BYTES]), digest)
