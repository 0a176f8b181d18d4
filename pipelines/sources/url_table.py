"""A table of image URLs with captions: csv, tsv, json, jsonl or parquet, each also .gz or .zst."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import model_validator

from pairloom.pipelines.sources.parquet_tables import (
    CAPTION,
    Columns,
    kept_fields,
    prepare_parquet,
    read_piece,
    schema_of,
    stage_packed,
    stage_text,
)
from pairloom.pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    boxes_or_error,
    clean_text,
    compression_of,
    format_of,
    list_source_files,
    own_uid,
)
from pairloom.pipelines.sources.text_tables import ERROR_COLUMN, TEXT_FORMATS
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage

UID_COLUMN = "uid"
BATCH_ROWS = 4096
STAGED_FORM = 2  # raised when staged tables get another form, for an interrupted ingest may go on with a newer release


def is_table(path: str) -> bool:
    """True for the names of files that hold a table."""
    return format_of(path) in (*TEXT_FORMATS, "parquet")


def staged_path(file: SourceFile, staging_folder: str) -> str:
    """Where the staged copy of this very content lies."""
    identity = f"{STAGED_FORM}\0{file.path}\0{file.size}\0{file.etag}".encode()
    return storage.join(staging_folder, f"{hashlib.sha256(identity).hexdigest()[:16]}.parquet")


def prepare_table(file: SourceFile, columns: Columns, staging_folder: str) -> Prepared:
    """Check and count a table; what cannot be read by row groups is staged first."""
    path = readable_path(file, staging_folder)
    if format_of(file.path) != "parquet":
        return stage_text(file, columns, path)
    if path != file.path:
        stage_packed(file, path)
    return prepare_parquet(path, columns, file.path)


def readable_path(file: SourceFile, staging_folder: str) -> str:
    """The file itself where it is plain parquet, else its staged copy."""
    is_plain = format_of(file.path) == "parquet" and compression_of(file.path) is None
    return file.path if is_plain else staged_path(file, staging_folder)


def kept_values(row: dict[str, Any], kept: pa.Schema) -> dict[str, Any]:
    """The columns that travel along; text as text."""
    return {field.name: clean_text(row[field.name]) if _is_text(field.type) else row[field.name] for field in kept}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def row_error(row: dict[str, Any]) -> SampleError | None:
    """What was wrong with a line that is no row."""
    message = clean_text(row.get(ERROR_COLUMN))
    return SampleError(DropReason.INVALID_URL, message) if message else None


class UrlTable:
    """Rows with a URL that is fetched."""

    has_images = False
    is_adopted = False

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe
        boxes = (recipe.blur_boxes_column,) if recipe.blur_boxes_column else ()
        required = (recipe.url_column, *recipe.caption_columns, *recipe.keep_columns, *boxes)
        self._columns = Columns(recipe.caption_columns, required, (UID_COLUMN,), tuple(recipe.keep_columns))

    def list_files(self) -> list[SourceFile]:
        """Tables that the source path names."""
        return list_source_files(self._recipe.path, is_table, "csv, tsv, json, jsonl or parquet table")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check the columns, count the rows; text is staged as parquet."""
        return prepare_table(file, self._columns, staging_folder)

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """Plain parquet is read where it is."""
        return readable_path(file, staging_folder)

    def kept_schema(self, path: str) -> pa.Schema:
        """Types of keep_columns."""
        return kept_fields(path, self._columns)

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Rows without images."""
        kept = self.kept_schema(piece.path)
        has_uid = UID_COLUMN in schema_of(piece.path).names
        for row in read_piece(piece, self._columns, BATCH_ROWS):
            boxes, box_error = boxes_or_error(row, self._recipe)
            yield SourceRow(
                url=clean_text(row[self._recipe.url_column]),
                caption=clean_text(row[CAPTION]),
                uid=own_uid(row[UID_COLUMN]) if has_uid else None,
                kept=kept_values(row, kept),
                error=row_error(row) or box_error,
                boxes=boxes,
            )


class UrlTableSource(SourceRecipe):
    """A table of URLs: csv, tsv, json, jsonl, parquet, each also .gz or .zst."""

    kind: Literal["url_table"]

    def open(self) -> UrlTable:
        """The reader."""
        return UrlTable(self)

    @model_validator(mode="after")
    def _boxes_are_kept(self) -> UrlTableSource:
        self._refuse_images()
        if self.blur_boxes_column and self.blur_boxes_column not in self.keep_columns:
            raise ValueError(f"blur_boxes_column: add {self.blur_boxes_column} to keep_columns, a retry blurs by it")
        return self
