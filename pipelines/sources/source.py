"""The interface of a source: a list of files that can be frozen, and their rows in a fixed order."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pairloom.pipelines.images.boxes import Boxes, read_boxes
from pairloom.pipelines.sources.urls import without_userinfo
from pairloom.schemas.data_set.shard import ByteRange
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.recipes.source import DEFAULT_CAPTION_COLUMN, SourceRecipe
from pairloom.schemas.storage import listing, storage

COMPRESSIONS = ("gz", "zst")
COLUMNS_SHOWN, COLUMN_CHARS_SHOWN = 40, 60  # limits of error messages
CAPTION_NAMES = ("caption", "text", "txt", "TEXT")  # tried in a sample's JSON if the recipe's column is missing
_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source at the time when its segment was frozen."""

    path: str
    size: int  # bytes
    etag: str  # changes with the content
    num_rows: int | None = None  # None: not counted yet, or a tar, which is not counted
    is_released: bool = False  # it was replaced or removed before any of its rows was ingested


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one file; a shard has one or more pieces."""

    path: str  # the file to read, or its staged copy
    origin: str  # the file of the source
    first_row: int = 0
    num_rows: int | None = None  # None: all


@dataclass(frozen=True)
class Prepared:
    """The result of preparing a file: its number of rows and the types of `keep_columns`."""

    num_rows: int
    kept_types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceRow:
    """One row of the input; a bad row has an `error`."""

    url: str | None
    caption: str | None
    uid: str | None = None  # if the source has uids
    image: bytes | None = None  # if the source contains the images
    kept: Mapping[str, Any] = field(default_factory=dict)  # keep_columns
    error: SampleError | None = None
    boxes: Boxes = ()  # to blur
    key: str | None = None  # adopted tars: key of the sample
    byte_range: ByteRange | None = None  # adopted tars: bytes of the image in the tar
    original_size: tuple[int, int] | None = None  # width, height in px before an earlier resize


class Source(Protocol):
    """A kind of source. Each task creates its own object."""

    has_images: bool  # rows have image bytes; False: their URLs are fetched
    is_adopted: bool  # images stay in their tars; one raw shard per file

    def list_files(self) -> list[SourceFile]:
        """The current files, sorted by path. Raises InputError."""

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Check one file and count its rows, once, before its segment is frozen. Raises InputError."""

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The path to read a prepared file from: the file itself or its staged copy."""

    def kept_schema(self, path: str) -> pa.Schema:
        """Types of `keep_columns` for rows of `path`."""

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """The rows of a piece, in order."""


def text_schema(columns: Sequence[str]) -> pa.Schema:
    """A schema of text columns, for formats without types."""
    return pa.schema([pa.field(name, pa.string()) for name in columns])


def clean_text(value: object) -> str | None:
    """A cell as text: invalid UTF-8 is replaced, NULs and surrounding spaces are removed; None if empty or NaN."""
    if value is None or value != value:  # NaN, as pandas writes missing values
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, from JSON escapes
    return text.replace("\0", "").strip() or None


def url_text(value: object) -> str | None:
    """A URL cell as text, without user and password."""
    text = clean_text(value)
    return without_userinfo(text) if text is not None else None


def own_uid(value: object) -> str | None:
    """The source's own uid if it has 32 hex digits; other values of a `uid` column are ignored."""
    text = clean_text(value)
    return text if text is not None and _UID.fullmatch(text) else None


def boxes_of(row: Mapping[str, Any], recipe: SourceRecipe) -> Boxes:
    """Boxes to blur, as lists or as JSON text. Raises SampleError: invalid_boxes."""
    value = row.get(recipe.blur_boxes_column) if recipe.blur_boxes_column is not None else None
    if isinstance(value, bytes | str):
        text = clean_text(value)
        try:
            value = json.loads(text) if text is not None else None
        except ValueError:
            value = text
    return read_boxes(value, recipe.blur_boxes_unit)


def boxes_or_error(row: Mapping[str, Any], recipe: SourceRecipe) -> tuple[Boxes, SampleError | None]:
    """The boxes of a row, or the error: an image whose boxes cannot be read is dropped."""
    try:
        return boxes_of(row, recipe), None
    except SampleError as error:
        return (), error


def read_below(folder: str, name: str) -> bytes | None:
    """The file with this name below `folder`; None if it does not exist or the name leads out of the folder."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or ".." in parts or "://" in name:
        return None
    path = storage.join(folder, name)
    if storage.is_local(path) and not os.path.isfile(storage.local_path(path)):
        return None
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def parse_fields(data: bytes | None) -> dict[str, Any]:
    """Fields of a sample's JSON; broken JSON has no fields, because image and caption may be valid."""
    try:
        fields = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def caption_of(fields: dict[str, Any], column: str) -> str | None:
    """Caption from a sample's JSON, under `column` or a common name; the first one of a list."""
    for name in (column, *CAPTION_NAMES):
        value = fields.get(name)
        texts = value if isinstance(value, list) else [value]
        text = next((clean_text(one) for one in texts if isinstance(one, str) and clean_text(one)), None)
        if text is not None:
            return text
    return None


def caption_beside(text: bytes | None, fields: dict[str, Any], recipe: SourceRecipe) -> str | None:
    """Caption of an image with .txt and .json: the field that the recipe names, else the .txt, else another field."""
    [column] = recipe.caption_columns
    named = fields.get(column) if column != DEFAULT_CAPTION_COLUMN else None
    return (caption_of({column: named}, column) if named else None) or clean_text(text) or caption_of(fields, column)


def require_columns(required: Sequence[str], there: Sequence[str], where: str) -> None:
    """Raise InputError that names the first missing column, the existing columns and the nearest one."""
    for name in required:
        if name not in there:
            shown = [(clean_text(one) or "")[:COLUMN_CHARS_SHOWN] for one in there[:COLUMNS_SHOWN]]
            nearest = difflib.get_close_matches(name, shown, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise InputError(f"{where}: no column {name}; there are {', '.join(filter(None, shown)) or 'none'}{hint}")


def format_of(path: str) -> str:
    """Format of a file by its name, in lower case, without compression: `urls.csv.gz` gives `csv`."""
    parts = storage.name_of(path).lower().split(".")
    if len(parts) > 2 and parts[-1] in COMPRESSIONS:
        parts.pop()
    return parts[-1] if len(parts) > 1 else ""


def compression_of(path: str) -> str | None:
    """`gz`, `zst` or None."""
    suffix = path.lower().rsplit(".", 1)[-1]
    return suffix if suffix in COMPRESSIONS else None


def list_source_files(paths: str | tuple[str, ...], accepts: Callable[[str], bool], what: str) -> list[SourceFile]:
    """Files of paths, folders, globs or URLs, sorted, without hidden files (`.x`, `_x`).

    Raises InputError if a path has no accepted file; `what` names the expected kind of file.
    """
    found: dict[str, SourceFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        infos = listing.expand_with_info(path)
        if not infos:
            raise InputError(f"source.path: {path}: no such file or folder, or it is empty; check the path")
        accepted = {
            url: info for url, info in infos.items() if accepts(url) and storage.name_of(url)[:1] not in (".", "_")
        }
        if not accepted:
            raise InputError(f"source.path: {path}: holds no {what}; check the path")
        for url, info in accepted.items():
            found[url] = SourceFile(url, int(info.get("size") or 0), _etag(info))
    return [found[url] for url in sorted(found)]


def _etag(info: Mapping[str, Any]) -> str:
    """A value that changes with the content of a file; for local files, size and modification time."""
    for name in ("ETag", "etag"):
        if info.get(name):
            return str(info[name])
    return f"{info.get('size')}-{info.get('mtime') or info.get('LastModified') or ''}"
