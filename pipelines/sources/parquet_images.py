"""Parquet tables with images: a binary column, or a {bytes, path} struct as Hugging Face writes it.

Captions are text, or lists of text with one row per caption. A struct with null bytes names a file below
`source.images`, or beside the table. img2dataset's parquet output names its image column after the image format:
`image_column: jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa

from pairloom.pipelines.sources.parquet_tables import CAPTION, Columns, kept_fields, read_piece, schema_of
from pairloom.pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    boxes_or_error,
    clean_text,
    format_of,
    list_source_files,
    own_uid,
    read_below,
    url_text,
)
from pairloom.pipelines.sources.url_table import UID_COLUMN, kept_values, prepare_table, readable_path
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.source import SourceRecipe

BATCH_ROWS = 16  # images in memory at once


class ParquetImages:
    """Rows with image bytes; an optional URL column is kept."""

    has_images = True
    is_adopted = False

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe
        boxes = (recipe.blur_boxes_column,) if recipe.blur_boxes_column else ()
        required = (recipe.image_column, *recipe.caption_columns, *recipe.keep_columns, *boxes)
        optional = (UID_COLUMN, recipe.url_column)
        self._columns = Columns(recipe.caption_columns, required, optional, tuple(recipe.keep_columns))

    def list_files(self) -> list[SourceFile]:
        """Parquet files of the source path."""
        return list_source_files(self._recipe.path, lambda path: format_of(path) == "parquet", "parquet file")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check the columns and the type of the image column; count the rows. Raises InputError."""
        prepared = prepare_table(file, self._columns, staging_folder)
        kind = schema_of(self.readable(file, staging_folder)).field(self._recipe.image_column).type
        is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(
                f"{file.path}: column {self._recipe.image_column} is {kind}; images are binary or a struct with bytes"
            )
        return prepared

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The file itself if it is plain parquet, else its staged copy."""
        return readable_path(file, staging_folder)

    def kept_schema(self, path: str) -> pa.Schema:
        """Types of keep_columns."""
        return kept_fields(path, self._columns)

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Rows with images."""
        kept = self.kept_schema(piece.path)
        folder = self._recipe.images or piece.origin.rpartition("/")[0]
        for row in read_piece(piece, self._columns, BATCH_ROWS):
            boxes, error = boxes_or_error(row, self._recipe)
            yield SourceRow(
                url=url_text(row.get(self._recipe.url_column)),
                caption=clean_text(row[CAPTION]),
                uid=own_uid(row.get(UID_COLUMN)),
                image=_image_bytes(row[self._recipe.image_column], folder),
                kept=kept_values(row, kept),
                error=error,
                boxes=boxes,
            )


def _image_bytes(value: Any, folder: str) -> bytes | None:
    """Bytes of a cell; a struct with only a path names a file below `folder`."""
    if not isinstance(value, dict):
        return value or None
    name = clean_text(value.get("path"))
    return value.get("bytes") or (read_below(folder, name) if name is not None else None)


class ParquetImagesSource(SourceRecipe):
    """Parquet with image bytes, or `{bytes, path}` structs as Hugging Face writes them."""

    kind: Literal["parquet_images"]

    def open(self) -> ParquetImages:
        """The reader."""
        return ParquetImages(self)
