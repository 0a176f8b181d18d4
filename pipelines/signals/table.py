"""table: columns of a user's own table, such as published scores, with one row per uid or URL.

    read    piece of the table, batch of raw shards -> keys with values or rows, by part of the key
    join    part of the keys -> the values of each raw row, by batch
    write   batch of raw shards -> columns

A task holds one piece, one part or one batch; the driver holds no rows. Numbers are float64 between the rounds, so that
integers are exact up to 2^53.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pairloom.pipelines.engine.batches import Batch, Folders, cut_batches
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.pipelines.engine.step_folder import missing_tables
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.signals.table_files import Piece, cut_table, find_tables, number_types, read_pieces
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

CLUSTER = "cluster"  # balance can use a column of this name


class TableSignals(Signal):
    """Columns of a user's own table with one row per uid or URL. Samples without a row are null."""

    kind: Literal["table"]
    name: Name
    path: str | tuple[str, ...]
    """Files, folders, globs or URLs of parquet, csv (also .gz), or .npy with named fields."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Numeric columns to use. Score rules and dedupe's `keep` can name them; balance can use one named cluster."""
    by: Literal["uid", "url"] = "uid"
    """The key of the table: the sample's uid, or its URL as in the source."""
    key_column: str | None = None
    """The column with the uid or URL; null: the column is named uid or url."""

    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder", "path": "its content is hashed"}
    version: ClassVar[int] = 1
    is_per_shard: ClassVar[bool] = False
    rows_per_part: ClassVar[int] = 2_000_000  # joined by one task

    @model_validator(mode="after")
    def _check_columns(self) -> TableSignals:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: a column is listed twice; remove one")
        if self.key in self.columns or "uid" in self.columns:
            raise ValueError("columns: the key is not a score; remove it")
        return self

    @property
    def key(self) -> str:
        """The column with the uid or URL."""
        return self.key_column or self.by

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a list."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def rule_columns(self) -> tuple[str, ...]:
        """All columns."""
        return self.columns

    def writes_clusters(self) -> bool:
        """Whether a column is named cluster."""
        return CLUSTER in self.columns

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the files."""
        return {f"table {index}": sha256_of(file) for index, file in enumerate(find_tables(self.paths, self.name))}

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Rounds of tasks: read, join, write."""
        return join_table(self, work.raw_folder, work.folder)


@dataclass(frozen=True)
class Job:
    """The settings, and the spill tables between the rounds."""

    signal: TableSignals
    types: Mapping[str, str]  # of the columns: int64 or float64
    given: SpillTable  # keys and values of the table
    wanted: SpillTable  # keys and rows of the raw shards
    found: SpillTable  # rows and values, by batch


def join_table(signal: TableSignals, raw_folder: str, folder: str) -> Mapping[str, object]:
    """Write the columns of every raw shard. Returns the counts of rows with and without values."""
    raw = load_manifest(raw_folder)
    pieces = [piece for file in find_tables(signal.paths, signal.name) for piece in cut_table(file)]
    batches = cut_batches([(Folders(raw_folder), raw)])
    num_parts = max(1, -(-raw.num_rows // signal.rows_per_part))
    spill = storage.join(folder, "spill")
    types = number_types([piece.url for piece in pieces], signal.columns, signal.key)
    job = Job(
        signal,
        types,
        SpillTable(storage.join(spill, "given"), len(pieces), num_parts),
        SpillTable(storage.join(spill, "wanted"), len(batches), num_parts),
        SpillTable(storage.join(spill, "found"), num_parts, len(batches)),
    )
    step = f"signals {signal.name}"
    run_shards(f"{step}: read", partial(read_piece, job), list(enumerate(pieces)))
    run_shards(f"{step}: keys", partial(read_keys, job), batches)
    counts = run_shards(f"{step}: join", partial(join_part, job), range(num_parts))
    largest = run_shards(step, partial(write_batch, job, folder), batches)
    storage.remove(spill)
    details: dict[str, object] = {"num_matched": sum(counts), "num_without_values": raw.num_samples - sum(counts)}
    if signal.writes_clusters():
        details["num_clusters"] = [max(largest, default=-1) + 1]
    return details


def read_piece(job: Job, item: tuple[int, Piece]) -> None:
    """Write the rows of one piece of the table by part of the key. Raises InputError for invalid keys or values."""
    index, piece = item
    keys, values = [np.zeros((0, 2), np.uint64)], [np.zeros((0, len(job.signal.columns)))]
    for table in read_pieces(piece, job.signal.key, job.signal.columns):
        keys.append(_keys(table[job.signal.key].to_pylist(), job.signal, piece.url))
        values.append(np.stack([_numbers(table[name]) for name in job.signal.columns], axis=1))
    rows = pack({"key": np.concatenate(keys), "values": np.concatenate(values)})
    job.given.write(index, rows, spread(np.ascontiguousarray(rows["key"][:, 0]), job.given.num_parts))


def _keys(values: Sequence[Any], signal: TableSignals, where: str) -> Any:
    """128-bit keys [rows, 2] of uids or URLs."""
    if signal.by == "uid":
        try:
            return pack_uids([str(value) for value in values])
        except ValueError as error:
            raise InputError(f"{where}: column {signal.key} has a value that is not a uid of 32 hex digits") from error
    hashed = b"".join(hashlib.blake2b(str(value or "").encode(), digest_size=16).digest() for value in values)
    return np.frombuffer(hashed, ">u8").astype(np.uint64).reshape(-1, 2)


def _numbers(column: pa.ChunkedArray) -> Any:
    return column.cast(pa.float64()).to_numpy()  # null: nan


def read_keys(job: Job, batch: Batch) -> None:
    """Write the keys of a batch of raw shards by part of the key."""
    rows = np.concatenate(list(_wanted(job, batch)))
    job.wanted.write(batch.index, rows, spread(np.ascontiguousarray(rows["key"][:, 0]), job.wanted.num_parts))


def _wanted(job: Job, batch: Batch) -> Iterator[Rows]:
    for index, name in batch.shards:
        raw = read_table(table_url(batch.folders.raw, name), ["uid", "url", "status"])
        has_key = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
        if job.signal.by == "url":
            has_key &= np.asarray(raw["url"].is_valid())
        chosen = np.flatnonzero(has_key)
        keys = _keys(raw[job.signal.by].take(pa.array(chosen)).to_pylist(), job.signal, name)
        shards, batches = np.full(len(chosen), index, np.int32), np.full(len(chosen), batch.index, np.int32)
        yield pack({"key": keys, "shard": shards, "row": chosen.astype(np.int32), "batch": batches})


def join_part(job: Job, part: int) -> int:
    """Find the values of the raw rows of one part. Returns the number of rows with values. Raises InputError."""
    given, wanted = job.given.read(part), job.wanted.read(part)
    keys = np.ascontiguousarray(given["key"]).view([("high", np.uint64), ("low", np.uint64)])[:, 0]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], given["values"][order]
    _check_repeats(job.signal, keys, values)
    requested = np.ascontiguousarray(wanted["key"]).view(keys.dtype)[:, 0]
    positions = np.searchsorted(keys, requested)
    known = positions < len(keys)
    known[known] = keys[positions[known]] == requested[known]
    rows = wanted[known]
    found = pack({"shard": rows["shard"], "row": rows["row"], "values": values[positions[known]]})
    job.found.write(part, found, rows["batch"].astype(np.int64))
    return int(known.sum())


def _check_repeats(signal: TableSignals, keys: Any, values: Any) -> None:
    """Raise InputError for a key with two rows of different values."""
    repeats = np.flatnonzero(keys[1:] == keys[:-1])
    differs = ~np.isclose(values[repeats], values[repeats + 1], equal_nan=True).all(axis=1)
    if differs.any():
        high, low = keys[repeats[differs][0]]
        named = f"{signal.by} {high:016x}{low:016x}" if signal.by == "uid" else f"a {signal.by}"
        raise InputError(f"signals.{signal.name}: {named} is in the table twice with different values; keep one row")


def write_batch(job: Job, folder: str, batch: Batch) -> int:
    """Write the missing shards of one batch. Returns the largest cluster, or -1."""
    found, largest = job.found.read(batch.index), -1
    missing = set(missing_tables(folder, [name for _, name in batch.shards]))
    for shard_index, name in batch.shards:
        rows = found[found["shard"] == shard_index]
        uids = read_table(table_url(batch.folders.raw, name), ["uid"])["uid"]
        values = np.full((len(uids), len(job.signal.columns)), np.nan)
        values[rows["row"]] = rows["values"]
        columns = {column: values[:, index] for index, column in enumerate(job.signal.columns)}
        if job.signal.writes_clusters() and len(rows):
            largest = max(largest, int(np.nanmax(columns[CLUSTER], initial=-1)))
        if name in missing:
            arrays = [_array(columns[column], _type(job, column)) for column in job.signal.columns]
            write_table(table_url(folder, name), pa.table([uids, *arrays], names=["uid", *job.signal.columns]))
    return largest


def _type(job: Job, column: str) -> pa.DataType:
    if column == CLUSTER:
        return pa.int32()
    return pa.int64() if job.types[column] == "int64" else pa.float64()


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    is_null = np.isnan(values)
    return pa.array(np.where(is_null, 0, values), kind, mask=is_null, safe=False)
