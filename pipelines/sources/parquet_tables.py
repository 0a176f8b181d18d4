"""Rows of parquet tables, read by row groups. A row with several captions (a list, or columns) becomes several rows.

Text formats are converted to parquet once (`stage_text`), so that each shard can read its own rows only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairloom.pipelines.sources.source import Piece, Prepared, SourceFile, format_of, require_columns
from pairloom.pipelines.sources.text_tables import ERROR_COLUMN, Row, blame, header_of, open_bytes, read_text_rows
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

STAGED_ROWS = 10_000  # per row group of a staged table
CAPTION = "pairloom_caption"  # column with the caption of a row
CAPTION_FROM = "caption_column"  # with several caption columns: the name of the one used


@dataclass(frozen=True)
class Columns:
    """The columns that a source reads."""

    captions: tuple[str, ...]
    required: tuple[str, ...]  # with caption and kept columns
    optional: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def of_caption(self) -> tuple[str, ...]:
        """The columns that describe a row's caption."""
        return (CAPTION, CAPTION_FROM) if len(self.captions) > 1 else (CAPTION,)

    @property
    def all(self) -> tuple[str, ...]:
        """All columns to read, if they exist."""
        return tuple(dict.fromkeys((*self.required, *self.optional)))


def stage_text(file: SourceFile, columns: Columns, target: str) -> Prepared:
    """Write the columns of a text table as parquet; each caption of a list becomes a row.

    A file of 0 bytes has no rows. Raises InputError.
    """
    if file.size == 0:
        return stage_rows(iter(()), columns, file.path, target)
    if format_of(file.path) in ("csv", "tsv"):
        require_columns(columns.required, header_of(file.path), file.path)
    return stage_rows(read_text_rows(file.path), columns, file.path, target)


def stage_rows(rows: Iterator[Row], columns: Columns, where: str, target: str) -> Prepared:
    """Write the columns of rows as parquet. `where`: name of the source file for errors. Raises InputError."""
    schema = pa.schema([pa.field(name, pa.string()) for name in (*columns.all, *columns.of_caption, ERROR_COLUMN)])
    seen: dict[str, None] = {}
    num_rows = 0
    with storage.build_locally(target) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(one for row in _recording(rows, seen) for one in _expand_captions(row, columns)):
            arrays = [pa.array([_cell(row.get(name)) for row in batch], pa.string()) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            num_rows += len(batch)
        if seen.keys() == {ERROR_COLUMN}:
            raise InputError(f"{where}: none of {num_rows} rows can be read; check that each is an object with columns")
        if num_rows:  # the columns of JSON are known only after all rows
            require_columns(columns.required, [name for name in seen if name != ERROR_COLUMN], where)
    return Prepared(num_rows, {name: "string" for name in columns.kept})


def _recording(rows: Iterator[Row], seen: dict[str, None]) -> Iterator[Row]:
    """Yield the rows and add their columns to `seen`."""
    for row in rows:
        if row.keys() - seen.keys():
            seen.update(dict.fromkeys(row))
        yield row


def _expand_captions(row: Row, columns: Columns) -> Iterator[Row]:
    """One row per caption. A column without captions gives one row, which will be dropped."""
    for name in columns.captions:
        value = row.get(name)
        for one in (value or [None]) if isinstance(value, list) else [value]:
            caption = None if isinstance(one, dict | list) else one  # an object is not a text
            yield {**row, **dict(zip(columns.of_caption, (caption, name), strict=False))}


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == STAGED_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _cell(value: Any) -> str | None:
    """A cell as text; JSON values other than strings stay JSON text."""
    if value is None or isinstance(value, str):
        return None if value is None else value.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(value, ensure_ascii=True, sort_keys=True)


def stage_packed(file: SourceFile, target: str) -> None:
    """Decompress a parquet file: compressed, it cannot be read by row groups."""
    with storage.build_locally(target) as path, open(path, "wb") as unpacked, open_bytes(file.path) as packed:
        while True:
            with blame(file.path):
                chunk = packed.read(storage.COPY_BYTES)
            if not chunk:
                return
            unpacked.write(chunk)


@contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    try:
        if storage.is_local(path):
            with pq.ParquetFile(storage.local_path(path)) as table:
                yield table
        else:
            with storage.open_read(path) as remote, pq.ParquetFile(remote, pre_buffer=True) as table:
                yield table
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet table: {error}") from error


def schema_of(path: str) -> pa.Schema:
    """Columns and types of a parquet file."""
    with _open(path) as table:
        return table.schema_arrow


def kept_fields(path: str, columns: Columns) -> pa.Schema:
    """Fields of the kept columns; dictionary columns have the type of their values."""
    schema = schema_of(path)
    fields = [pa.field(name, _plain_type(schema.field(name).type)) for name in columns.kept]
    return pa.schema([*fields, *(pa.field(name, pa.string()) for name in columns.of_caption if name != CAPTION)])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def prepare_parquet(path: str, columns: Columns, where: str) -> Prepared:
    """Check the columns and count the rows, one per caption. Raises InputError."""
    with _open(path) as table:
        schema = table.schema_arrow
        require_columns(columns.required, schema.names, where)
        _check_captions(schema, columns, where)
        num_rows = table.metadata.num_rows
        if not _has_one_caption_per_row(schema, columns):
            num_rows = int(_captions_of_rows(table, columns).sum())
    kept = {name: str(_plain_type(schema.field(name).type)) for name in columns.kept}
    return Prepared(num_rows, kept)


def _check_captions(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raise InputError for a caption column that is neither text nor a list of text."""
    for name in columns.captions:
        kind = schema.field(name).type
        inner = kind.value_type if _is_list(kind) else kind
        if pa.types.is_nested(inner):
            texts = [field.name for field in inner.fields if is_text(field.type)] if pa.types.is_struct(inner) else []
            fields = f" of its field {' or '.join(texts)}" if texts else ""
            raise InputError(
                f"{where}: column {name} is {kind}; captions are text or lists of text: "
                f"write the text{fields} to a column, and name it in source.caption_column"
            )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _has_one_caption_per_row(schema: pa.Schema, columns: Columns) -> bool:
    """Whether table rows are source rows; in staged tables they are."""
    one = len(columns.captions) == 1 and not _is_list(schema.field(columns.captions[0]).type)
    return one or CAPTION in schema.names


def _captions_of_rows(table: pq.ParquetFile, columns: Columns) -> npt.NDArray[np.int64]:
    """Number of captions per table row; a column without captions counts as one."""
    counts = np.zeros(table.metadata.num_rows, np.int64)
    for name in columns.captions:
        if not _is_list(table.schema_arrow.field(name).type):
            counts += 1
            continue
        lengths = [
            np.asarray(pc.fill_null(pc.list_value_length(batch.column(0)), 0))
            for batch in table.iter_batches(columns=[name])
        ]
        counts += np.maximum(np.concatenate(lengths) if lengths else np.zeros(0, np.int64), 1)
    return counts


def read_piece(piece: Piece, columns: Columns, batch_size: int) -> Iterator[Row]:
    """Rows of a piece of a prepared file as column -> value, with CAPTION; text may be bytes."""
    with _open(piece.path) as table:
        schema = table.schema_arrow
        staged = (*columns.of_caption, ERROR_COLUMN) if ERROR_COLUMN in schema.names else ()
        names = [name for name in (*columns.all, *staged) if name in schema.names]
        num_rows = piece.num_rows if piece.num_rows is not None else table.metadata.num_rows
        if _has_one_caption_per_row(schema, columns):
            for row in _slice(table, names, piece.first_row, num_rows, batch_size):
                row.setdefault(CAPTION, row[columns.captions[0]])
                yield row
            return
        ends = np.cumsum(_captions_of_rows(table, columns))
        first = int(np.searchsorted(ends, piece.first_row, side="right"))
        last = int(np.searchsorted(ends, piece.first_row + num_rows - 1, side="right"))
        row_index = int(ends[first - 1]) if first else 0
        for row in _slice(table, names, first, last - first + 1, batch_size):
            for one in _expand_captions(row, columns):
                if piece.first_row <= row_index < piece.first_row + num_rows:
                    yield one
                row_index += 1


def _slice(
    table: pq.ParquetFile, names: Sequence[str], first_row: int, num_rows: int, batch_size: int
) -> Iterator[Row]:
    """Rows first_row .. first_row + num_rows - 1, from their row groups."""
    groups: list[int] = []
    start = row_index = 0
    for group in range(table.num_row_groups):
        length = table.metadata.row_group(group).num_rows
        if row_index + length > first_row and row_index < first_row + num_rows:
            start = start if groups else row_index
            groups.append(group)
        row_index += length
    if not groups:
        return
    row_index = start
    for batch in table.iter_batches(batch_size, row_groups=groups, columns=list(names)):
        skipped = max(0, first_row - row_index)
        wanted = min(batch.num_rows, first_row + num_rows - row_index)
        row_index += batch.num_rows
        if wanted > skipped:
            yield from _rows_of(batch.slice(skipped, wanted - skipped))
        if row_index >= first_row + num_rows:
            return


def _rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    cells = {name: _values(batch.column(name)) for name in batch.schema.names}
    for values in zip(*cells.values(), strict=True):
        yield dict(zip(cells, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    """Python values; text as bytes, because parquet does not guarantee UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    return list(column.to_pylist())
