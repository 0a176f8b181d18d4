"""A folder of images: each with a .txt or .json of the same name, or all listed in a captions table.

If `path` names tables (csv, tsv, json, jsonl, parquet) or caption files of COCO and Flickr (annotations.py), or a
folder with one at its top, rows come from them: `image_column` is a file name below `source.images` (default: the
folder of the table), `caption_column` a caption or a list of captions. Hugging Face's `metadata.csv` and
`metadata.jsonl` are found in any folder below `path`. A .json with the same name as an image belongs to it: its caption
is used if there is no .txt, or if the recipe names its field. So img2dataset's output of plain files needs no change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow as pa

from pairloom.pipelines.sources.annotations import kind_of, read_annotations
from pairloom.pipelines.sources.parquet_tables import CAPTION, Columns, kept_fields, read_piece, schema_of, stage_rows
from pairloom.pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    boxes_or_error,
    caption_beside,
    clean_text,
    format_of,
    list_source_files,
    own_uid,
    parse_fields,
    read_below,
    url_text,
)
from pairloom.pipelines.sources.text_tables import Row, read_text_rows
from pairloom.pipelines.sources.url_table import (
    UID_COLUMN,
    is_table,
    kept_values,
    prepare_table,
    readable_path,
    row_error,
)
from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage

BATCH_ROWS = 256
SIDECARS = ("txt", "json")
IMAGE_NAMES = ("image", "file_name", "filename", "image_name", "image_path")
CAPTION_NAMES = ("caption", "captions", "text", "comment")


def is_image(path: str) -> bool:
    """Whether a name is that of an image file."""
    return format_of(path) in IMAGE_EXTENSIONS


class Folder:
    """Rows whose images are single files."""

    has_images = True
    is_adopted = False

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe
        boxes = (recipe.blur_boxes_column,) if recipe.blur_boxes_column else ()
        required = (recipe.image_column, *recipe.caption_columns, *recipe.keep_columns, *boxes)
        optional = (UID_COLUMN, recipe.url_column)
        self._columns = Columns(recipe.caption_columns, required, optional, tuple(recipe.keep_columns))

    def list_files(self) -> list[SourceFile]:
        """The captions tables, or else the images; an image with its caption file is one row."""
        files = list_source_files(self._recipe.path, _belongs, "image or captions table")
        by_path = {file.path: file for file in files}
        images = [file for file in files if is_image(file.path)]
        beside = {_stem(image.path) for image in images}
        named = self._named()
        tables = [file for file in files if self._is_captions_table(file.path, named, beside)]
        if tables:
            return tables
        if self._recipe.keep_columns or len(self._recipe.caption_columns) > 1:
            name = "keep_columns" if self._recipe.keep_columns else "caption_column"
            raise RecipeError(f"source.{name}: images with .txt files have no columns; use a captions table")
        if not images:
            raise InputError(f"source.path: {self._recipe.path}: holds no image and no captions table; check the path")
        return [_one_row(image, [by_path.get(f"{_stem(image.path)}.{end}") for end in SIDECARS]) for image in images]

    def _named(self) -> set[str]:
        paths = [self._recipe.path] if isinstance(self._recipe.path, str) else self._recipe.path
        return {os.path.abspath(one) if storage.is_local(one) else one.rstrip("/") for one in paths}

    def _is_captions_table(self, path: str, named: set[str], beside: set[str]) -> bool:
        """Whether a file is named by the recipe or at the top of a named folder; deeper tables may be anything."""
        name = storage.name_of(path)
        if is_image(path) or _stem(path) in beside:
            return False
        if path in named or any("*" in one for one in named):
            return is_table(path) or kind_of(path) is not None
        if name.startswith("metadata."):
            return is_table(path)
        if path.rpartition("/")[0] not in named or name.endswith("_stats.json"):
            return False
        if format_of(path) == "parquet":  # img2dataset's tables beside plain files name no image
            return self._recipe.image_column in schema_of(path).names
        return is_table(path) or kind_of(path) is not None

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check the columns of a captions table and count its rows. Raises InputError."""
        kind = kind_of(file.path)
        if format_of(file.path) == "parquet":
            return prepare_table(file, self._columns, staging_folder)
        rows = read_text_rows(file.path) if kind is None else read_annotations(file.path, kind)
        target = readable_path(file, staging_folder)
        return stage_rows((self._with_recipe_names(row) for row in rows), self._columns, file.path, target)

    def _with_recipe_names(self, row: Row) -> Row:
        """The row with the recipe's column names, if it uses other common names."""
        wanted: list[tuple[str, tuple[str, ...]]] = [(self._recipe.image_column, IMAGE_NAMES)]
        if len(self._recipe.caption_columns) == 1:
            wanted.append((self._recipe.caption_columns[0], CAPTION_NAMES))
        for column, common in wanted:
            found = next((name for name in common if name in row), None)
            if column not in row and found is not None:
                row = {**row, column: row[found]}
        return row

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The table or its staged copy; an image file itself."""
        return file.path if is_image(file.path) else readable_path(file, staging_folder)

    def kept_schema(self, path: str) -> pa.Schema:
        """Types of keep_columns."""
        return kept_fields(path, self._columns) if not is_image(path) else pa.schema([])

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Rows with the bytes of their image file."""
        if is_image(piece.origin):
            yield self._row_of_image(piece.origin)
            return
        kept = self.kept_schema(piece.path)
        parent = self._recipe.images or piece.origin.rpartition("/")[0]
        for row in read_piece(piece, self._columns, BATCH_ROWS):
            name = clean_text(row[self._recipe.image_column])
            boxes, box_error = boxes_or_error(row, self._recipe)
            error = row_error(row) or box_error
            yield SourceRow(
                url=url_text(row.get(self._recipe.url_column)),
                caption=clean_text(row[CAPTION]),
                uid=own_uid(row.get(UID_COLUMN)),
                image=read_below(parent, name) if name and error is None else None,
                kept=kept_values(row, kept),
                error=error,
                boxes=boxes,
            )

    def _row_of_image(self, path: str) -> SourceRow:
        """An image with its caption from the .txt or .json, and url and uid from the .json."""
        fields = parse_fields(_read(f"{_stem(path)}.json"))
        boxes, error = boxes_or_error(fields, self._recipe)
        return SourceRow(
            url=url_text(fields.get(self._recipe.url_column)),
            caption=caption_beside(_read(f"{_stem(path)}.txt"), fields, self._recipe),
            uid=own_uid(fields.get(UID_COLUMN)),
            image=_read(path),
            error=error,
            boxes=boxes,
        )


def _belongs(path: str) -> bool:
    return is_image(path) or is_table(path) or format_of(path) in ("txt", "token")


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _one_row(image: SourceFile, sidecars: Sequence[SourceFile | None]) -> SourceFile:
    """An image and its caption files as one frozen file; its etag changes with any of them."""
    etags = [one.etag for one in sidecars if one is not None]
    return replace(image, etag=" ".join((image.etag, *(etags or ["no caption"]))), num_rows=1)


def _read(path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


class FolderSource(SourceRecipe):
    """Images with a .txt of the same name each, or with a table or annotation file.

    `metadata.csv` and `metadata.jsonl` of Hugging Face's imagefolder, COCO's `captions_*.json`, Flickr's `*.token` and
    `results.csv`, Karpathy's `dataset_*.json`. `path` may also be that file itself, with `images` the folder that its
    names are relative to (default: the folder of the file).
    """

    kind: Literal["folder"]

    def open(self) -> Folder:
        """The reader."""
        return Folder(self)
