"""Tables of users: parquet, csv and .npy files, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import listing, storage
from pairloom.schemas.storage.arrays import read_array

FORMATS = (".parquet", ".csv", ".csv.gz", ".npy")
ROWS_PER_PIECE = 2_000_000


@dataclass(frozen=True)
class Piece:
    """A file, or some row groups of a parquet file."""

    url: str
    row_groups: tuple[int, ...] | None = None  # None: the whole file


def find_tables(paths: Sequence[str], name: str) -> list[str]:
    """The files of a signal's `path`, sorted. Raises InputError if there are none."""
    found: dict[str, None] = {}
    for path in paths:
        files = [file for file in listing.expand(path) if file.endswith(FORMATS)]
        if not files:
            raise InputError(f"signals.{name}.path: {path}: no table; use {', '.join(FORMATS)}")
        found.update(dict.fromkeys(files))
    return sorted(found)


def cut_table(url: str) -> list[Piece]:
    """A file in pieces of about ROWS_PER_PIECE rows; only parquet files can be split."""
    if not url.endswith(".parquet"):
        return [Piece(url)]
    pieces: list[Piece] = []
    groups: list[int] = []
    num_rows = 0
    with _reading(url), storage.open_read(url) as file:
        metadata = pq.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            groups.append(group)
            num_rows += metadata.row_group(group).num_rows
            if num_rows >= ROWS_PER_PIECE:
                pieces.append(Piece(url, tuple(groups)))
                groups, num_rows = [], 0
    return [*pieces, Piece(url, tuple(groups))] if groups or not pieces else pieces


def number_types(urls: Sequence[str], columns: Sequence[str], key: str) -> Mapping[str, str]:
    """int64 or float64 per column, over all files. Raises InputError for a missing or non-numeric column."""
    types = dict.fromkeys(columns, "int64")
    for url in dict.fromkeys(urls):
        schema = _schema_of(url)
        for name in (key, *columns):
            if name not in schema.names:
                raise InputError(f"{url}: no column {name}; there are {', '.join(schema.names)}")
        for name in columns:
            kind = schema.field(name).type
            if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
                types[name] = "float64"
            elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
                raise InputError(f"{url}: column {name} is {kind}; use numeric columns")
    return types


def read_pieces(piece: Piece, key: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The key and the columns of one piece, in batches."""
    names = [key, *columns]
    with _reading(piece.url):
        if piece.url.endswith(".parquet"):
            with storage.open_read(piece.url) as file:
                for batch in pq.ParquetFile(file).iter_batches(row_groups=piece.row_groups, columns=names):
                    yield pa.Table.from_batches([batch]).select(names)
        elif piece.url.endswith(".npy"):
            yield _npy_table(piece.url).select(names)
        else:
            with _csv(piece.url, names, key) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])


def _schema_of(url: str) -> pa.Schema:
    with _reading(url):
        if url.endswith(".parquet"):
            with storage.open_read(url) as file:
                return pq.read_schema(file)
        if url.endswith(".npy"):
            return _npy_table(url).schema
        with _csv(url, None, "") as reader:
            return reader.schema


@contextmanager
def _csv(url: str, names: Sequence[str] | None, key: str) -> Iterator[Any]:
    types = None if names is None else {name: pa.string() if name == key else pa.float64() for name in names}
    options = pa.csv.ConvertOptions(include_columns=names, column_types=types)
    with storage.open_read(url) as raw:
        stream = pa.CompressedInputStream(raw, "gzip") if url.endswith(".gz") else raw
        yield pa.csv.open_csv(stream, convert_options=options)


def _npy_table(url: str) -> pa.Table:
    array = read_array(url)
    if array.dtype.names is None or array.ndim != 1:
        raise InputError(f"{url}: is {array.dtype} {array.shape}; save one structured array with named fields")
    columns = {}
    for name in array.dtype.names:
        values = array[name]
        columns[name] = pa.array(np.char.decode(values, "ascii") if values.dtype.kind == "S" else values)
    return pa.table(columns)


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn errors of a broken or missing file into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except (pa.ArrowException, ValueError, EOFError, OSError) as error:
        raise InputError(f"{url}: cannot be read as a table: {' '.join(str(error).split())[:200]}") from error
