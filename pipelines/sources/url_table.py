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
    is_text,
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
    url_text,
)
from pairloom.pipelines.sources.text_tables import ERROR_COLUMN, TEXT_FORMATS
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage

UID_COLUMN = "uid"
BATCH_ROWS = 4096
STAGED_FORM = 3  # raise it with the format of staged tables: a newer release may resume an interrupted ingest


def is_table(path: str) -> bool:
    """Whether a name is that of a table."""
    return format_of(path) in (*TEXT_FORMATS, "parquet")


def staged_path(file: SourceFile, staging_folder: str) -> str:
    """The path of the staged copy of this content."""
    identity = f"{STAGED_FORM}\0{file.path}\0{file.size}\0{file.etag}".encode()
    return storage.join(staging_folder, f"{hashlib.sha256(identity).hexdigest()[:16]}.parquet")


def prepare_table(file: SourceFile, columns: Columns, staging_folder: str) -> Prepared:
    """Check the columns of a table and count its rows; formats without row groups are staged. Raises InputError."""
    path = readable_path(file, staging_folder)
    if format_of(file.path) != "parquet":
        return stage_text(file, columns, path)
    if path != file.path:
        stage_packed(file, path)
    return prepare_parquet(path, columns, file.path)


def readable_path(file: SourceFile, staging_folder: str) -> str:
    """The file itself if it is plain parquet, else its staged copy."""
    is_plain = format_of(file.path) == "parquet" and compression_of(file.path) is None
    return file.path if is_plain else staged_path(file, staging_folder)


def kept_values(row: dict[str, Any], kept: pa.Schema) -> dict[str, Any]:
    """The values of `keep_columns`; text is cleaned."""
    return {field.name: clean_text(row[field.name]) if is_text(field.type) else row[field.name] for field in kept}


def row_error(row: dict[str, Any]) -> SampleError | None:
    """The error of a line that could not be read."""
    message = clean_text(row.get(ERROR_COLUMN))
    return SampleError(DropReason.INVALID_URL, message) if message else None


class UrlTable:
    """Rows whose images are fetched by URL."""

    has_images = False
    is_adopted = False

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe
        boxes = (recipe.blur_boxes_column,) if recipe.blur_boxes_column else ()
        required = (recipe.url_column, *recipe.caption_columns, *recipe.keep_columns, *boxes)
        self._columns = Columns(recipe.caption_columns, required, (UID_COLUMN,), tuple(recipe.keep_columns))

    def list_files(self) -> list[SourceFile]:
        """Tables of the source path."""
        return list_source_files(self._recipe.path, is_table, "csv, tsv, json, jsonl or parquet table")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check the columns and count the rows; text is staged as parquet. Raises InputError."""
        return prepare_table(file, self._columns, staging_folder)

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The file itself if it is plain parquet, else its staged copy."""
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
                url=url_text(row[self._recipe.url_column]),
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
            raise ValueError(f"blur_boxes_column: add {self.blur_boxes_column} to keep_columns; a retry needs it")
        return self
