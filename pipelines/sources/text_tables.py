"""Rows of csv, tsv, json and jsonl, also compressed, read as a stream and never whole."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from pairloom.pipelines.sources.source import compression_of, format_of
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "ndjson")
ERROR_COLUMN = "pairloom_error"  # of a row that could not be read: why
MAX_FIELD_CHARS = 1 << 24  # of one csv field; more is a quote that never closes
CHUNK_CHARS = 1 << 20
_BETWEEN_OBJECTS = re.compile(r"[\s,]*")

Row = dict[str, Any]


def read_text_rows(url: str) -> Iterator[Row]:
    """Rows as column -> value; a row that is no row carries ERROR_COLUMN. Raises InputError: unreadable file."""
    kind = format_of(url)
    with blame(url), open_text(url) as file:
        if kind in ("csv", "tsv"):
            yield from _csv_rows(file, "," if kind == "csv" else "\t", url)
        else:
            yield from _json_rows(file, url)


@contextmanager
def blame(url: str) -> Iterator[None]:
    """Turn what reading a broken or missing file raises into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{url}: cannot be read: {error}") from error


@contextmanager
def open_bytes(url: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, as a stream."""
    with storage.open_read(url) as raw:
        compression = compression_of(url)
        if compression == "gz":
            with gzip.open(raw, "rb") as file:
                yield file
        elif compression == "zst":
            yield io.BufferedReader(_ZstdReader(raw))
        else:
            yield raw


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of any number of frames; a frame that is cut short is an error, not an end."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_inside = False
        self._ready = b""

    def readable(self) -> bool:
        """True: this is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end. Raises EOFError where the file ends inside a frame."""
        while not self._ready:
            chunk = self._packed.read(CHUNK_CHARS)
            if not chunk:
                if self._is_inside:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
                return 0
            self._ready = self._unpack(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _unpack(self, chunk: bytes) -> bytes:
        unpacked = []
        while chunk:
            unpacked.append(self._frame.decompress(chunk))
            self._is_inside = not self._frame.eof
            chunk = b""
            if self._frame.eof:
                chunk = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(unpacked)


@contextmanager
def open_text(url: str) -> Iterator[IO[str]]:
    """Text of a file; bytes that are no UTF-8 become U+FFFD, so that one caption never loses the others."""
    with open_bytes(url) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:
        yield text


def header_of(url: str) -> list[str]:
    """Column names of a csv or tsv. Raises InputError where there is no header."""
    with blame(url), open_text(url) as file:
        names: list[str] | None = next(_csv_reader(file, "," if format_of(url) == "csv" else "\t"), None)
    if not names:
        raise InputError(f"{url}: empty; the first line must name the columns")
    if any("\0" in name for name in names):
        raise InputError(f"{url}: the first line holds NUL bytes; is this a text file, and UTF-8 rather than UTF-16?")
    return names


def _csv_reader(file: IO[str], delimiter: str) -> Any:
    csv.field_size_limit(MAX_FIELD_CHARS)
    return csv.reader(file, delimiter=delimiter)


def _csv_rows(file: IO[str], delimiter: str, url: str) -> Iterator[Row]:
    """Rows of a csv: what is missing at the end of a line is None, what is too much is left out."""
    reader = _csv_reader(file, delimiter)
    try:
        names = next(reader, None)
        if not names:
            raise InputError(f"{url}: empty; the first line must name the columns")
        for values in reader:
            if values:  # csv gives an empty list for an empty line
                yield dict(zip(names, values, strict=False))
    except csv.Error as error:
        raise InputError(f"{url}: line {reader.line_num}: {error}; is a quote left open?") from error


def _json_rows(file: IO[str], url: str) -> Iterator[Row]:
    """Rows of JSON lines, or of one array of objects."""
    start = file.read(1)
    while start and start.isspace():
        start = file.read(1)
    if start == "[":
        yield from _array_rows(file, url)
        return
    rest = start + file.readline()
    number = 1
    while rest:
        if rest.strip():
            yield _object_row(rest, f"line {number}")
        rest = file.readline()
        number += 1


def _object_row(text: str, where: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {ERROR_COLUMN: f"{where}: not JSON: {error}"}
    return value if isinstance(value, dict) else {ERROR_COLUMN: f"{where}: not a JSON object"}


def _array_rows(file: IO[str], url: str) -> Iterator[Row]:
    """Objects of one JSON array, decoded one after the other from a buffer that is refilled."""
    decoder = json.JSONDecoder()
    buffer, place, number = "", 0, 0
    while True:
        between = _BETWEEN_OBJECTS.match(buffer, place)
        place = between.end() if between is not None else place
        if buffer.startswith("]", place):
            return
        try:
            value, place = decoder.raw_decode(buffer, place)
        except RecursionError as error:
            raise InputError(f"{url}: object {number}: nested too deeply") from error
        except ValueError as error:
            chunk = file.read(max(CHUNK_CHARS, len(buffer) - place))
            if not chunk:
                raise InputError(f"{url}: not a JSON array of objects: object {number}: {error}") from error
            buffer, place = buffer[place:] + chunk, 0
            continue
        number += 1
        yield value if isinstance(value, dict) else {ERROR_COLUMN: f"object {number}: not a JSON object"}
