"""A folder of images: each with a .txt of the same name, or all listed in a captions table.

Where `path` names tables (csv, tsv, json, jsonl, parquet), or a folder that holds one at its top, rows come from
them: `image_column` is a file name beside the table, `caption_column` its caption, or a list of captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from pipelines.sources.parquet_tables import Columns, kept_fields, read_piece
from pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    clean_text,
    format_of,
    list_source_files,
    own_uid,
)
from pipelines.sources.url_table import (
    UID_COLUMN,
    is_table,
    kept_values,
    prepare_table,
    readable_path,
    row_error,
)
from schemas import storage
from schemas.curate_recipe import SourceRecipe
from schemas.errors import InputError, RecipeError
from schemas.shard import IMAGE_EXTENSIONS

BATCH_ROWS = 256


def is_image(path: str) -> bool:
    """True for the names of image files."""
    return format_of(path) in IMAGE_EXTENSIONS


class Folder:
    """Rows with images that lie in files of their own."""

    has_images = True
    is_adopted = False

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe
        required = (recipe.image_column, recipe.caption_column, *recipe.keep_columns)
        optional = (UID_COLUMN, recipe.url_column)
        self._columns = Columns(recipe.caption_column, required, optional, tuple(recipe.keep_columns))

    def list_files(self) -> list[SourceFile]:
        """Captions tables, or images, each with its caption file, that are one row each."""
        files = list_source_files(self._recipe.path, _belongs, "image or captions table")
        tables = [file for file in files if is_table(file.path) and self._is_captions_table(file.path)]
        if tables:
            return tables
        if self._recipe.keep_columns:
            raise RecipeError("source.keep_columns: images beside .txt files have no columns; give a captions table")
        captions = {file.path: file for file in files if format_of(file.path) == "txt"}
        images = [file for file in files if is_image(file.path)]
        if not images:
            raise InputError(f"source.path: {self._recipe.path}: holds no image and no captions table")
        return [_one_row(image, captions.get(_caption_path(image.path))) for image in images]

    def _is_captions_table(self, path: str) -> bool:
        """Named by the recipe or at the top of a folder that is; tables deeper down may be anything."""
        paths = [self._recipe.path] if isinstance(self._recipe.path, str) else self._recipe.path
        named = {os.path.abspath(one) if storage.is_local(one) else one.rstrip("/") for one in paths}
        return path in named or path.rpartition("/")[0] in named or any("*" in one for one in named)

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check and count a captions table."""
        return prepare_table(file, self._columns, staging_folder)

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The table or its staged copy; an image is read where it is."""
        return readable_path(file, staging_folder) if is_table(file.path) else file.path

    def kept_schema(self, path: str) -> pa.Schema:
        """Types of keep_columns."""
        return kept_fields(path, self._columns.kept) if is_table(path) else pa.schema([])

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Rows with the bytes of their image file."""
        if not is_table(piece.origin):
            yield SourceRow(None, _read_caption(_caption_path(piece.origin)), image=_read(piece.origin))
            return
        kept = self.kept_schema(piece.path)
        parent = piece.origin.rpartition("/")[0]
        for row in read_piece(piece, self._columns, BATCH_ROWS):
            name = clean_text(row[self._recipe.image_column])
            error = row_error(row)
            yield SourceRow(
                url=clean_text(row.get(self._recipe.url_column)),
                caption=clean_text(row[self._recipe.caption_column]),
                uid=own_uid(row.get(UID_COLUMN)),
                image=_read_beside(parent, name) if name and error is None else None,
                kept=kept_values(row, kept),
                error=error,
            )


def _belongs(path: str) -> bool:
    return is_image(path) or is_table(path) or format_of(path) == "txt"


def _caption_path(image: str) -> str:
    return f"{image.rpartition('.')[0]}.txt"


def _one_row(image: SourceFile, caption: SourceFile | None) -> SourceFile:
    """An image and its caption as one frozen file: a change of either shows."""
    etag = f"{image.etag} {caption.etag if caption is not None else 'no caption'}"
    return replace(image, etag=etag, num_rows=1)


def _read_caption(path: str) -> str | None:
    data = _read(path)
    return clean_text(data)


def _read(path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def _read_beside(folder: str, name: str) -> bytes | None:
    """An image by its name in a table; names never lead out of the table's folder."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or ".." in parts or "://" in name:
        return None
    path = storage.join(folder, name)
    if storage.is_local(path) and not os.path.isfile(path):
        return None
    return _read(path)
