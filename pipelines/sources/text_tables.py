"""Rows of csv, tsv, json and jsonl files, also compressed, read as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from pairloom.pipelines.sources.source import compression_of, format_of
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "ndjson")
ERROR_COLUMN = "pairloom_error"  # column with the reason why a row could not be read
MAX_FIELD_CHARS = 1 << 24  # per csv field; a longer one has an open quote
CHUNK_CHARS = 1 << 20
_BETWEEN_OBJECTS = re.compile(r"[\s,]*")

Row = dict[str, Any]


def read_text_rows(url: str) -> Iterator[Row]:
    """Rows as column -> value; an unreadable row has ERROR_COLUMN. Raises InputError for an unreadable file."""
    kind = format_of(url)
    is_literal = kind == "tsv" and not _is_quoted(url)
    with blame(url), open_text(url, "\n" if is_literal else "") as file:
        if is_literal:
            yield from _literal_rows(file)
        elif kind in ("csv", "tsv"):
            yield from _csv_rows(file, "," if kind == "csv" else "\t", url)
        else:
            yield from _json_rows(file, url)


@contextmanager
def blame(url: str) -> Iterator[None]:
    """Turn errors of reading a broken or missing file into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{url}: cannot be read: {error}; check the file") from error


@contextmanager
def open_bytes(url: str) -> Iterator[IO[bytes]]:
    """A stream of the decompressed bytes of a file."""
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
    """Decompressed bytes of any number of zstd frames; a truncated frame is an error."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_inside = False
        self._ready = b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns the number of bytes, 0 at the end. Raises EOFError if a frame is truncated."""
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
def open_text(url: str, newline: str = "") -> Iterator[IO[str]]:
    """Text of a file; invalid UTF-8 becomes U+FFFD, so that one bad caption does not affect the others.

    `newline`: end of a line; "": also a carriage return.
    """
    with open_bytes(url) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline=newline) as text:
        yield text


def header_of(url: str) -> list[str]:
    """Column names of a csv or tsv file. Raises InputError if there is no header."""
    with blame(url), open_text(url) as file:
        names: list[str] | None = next(_csv_reader(file, "," if format_of(url) == "csv" else "\t"), None)
    if not names:
        raise InputError(f"{url}: empty; the first line must name the columns")
    if any("\0" in name for name in names):
        raise InputError(f"{url}: the first line has NUL bytes; save the table as UTF-8 text")
    return names


def _csv_reader(file: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(MAX_FIELD_CHARS)
    return csv.reader(file, delimiter=delimiter)


def _csv_rows(file: IO[str], delimiter: str, url: str) -> Iterator[Row]:
    """Rows of a csv file: missing values at the end of a line are None, excess values are ignored."""
    lines = _RecordLines(file)
    reader = _csv_reader(lines, delimiter)
    try:
        names = next(reader, None)
        if not names:
            raise InputError(f"{url}: empty; the first line must name the columns")
        for values in reader:
            if lines.end_inside_quotes(delimiter):
                raise csv.Error("the file ends inside a quoted value")
            lines.of_record.clear()
            if values:  # csv gives an empty list for an empty line
                yield dict(zip(names, values, strict=False))
    except csv.Error as error:
        raise InputError(f"{url}: line {reader.line_num}: {error}; look for an open quote") from error


class _RecordLines:
    """Lines of a file; keeps those of the current record, and the end of the file."""

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = iter(file)
        self._is_at_end = False
        self.of_record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self._is_at_end = True
            raise
        self.of_record.append(line)
        return line

    def end_inside_quotes(self, delimiter: str) -> bool:
        """Whether the file ended inside a quoted value: the reader then gives the rest of the file as that value."""
        if not self._is_at_end:
            return False
        try:
            list(csv.reader(self.of_record, delimiter=delimiter, strict=True))
        except csv.Error as error:
            return "unexpected end of data" in str(error)
        return False


def _is_quoted(url: str) -> bool:
    """Whether a tsv quotes its values as csv does.

    It does if its header does; or if some line has another number of columns than the header, which quoting explains:
    read with quotes, without any error, all rows have as many columns as the header.
    """
    with blame(url), open_text(url, "\n") as file:
        header = file.readline()
        if any(name.startswith('"') for name in header.split("\t")):
            return True
        if all(line.count("\t") == header.count("\t") for line in file if line.strip("\r\n")):
            return False
    with blame(url), open_text(url) as file:
        try:
            lengths = {len(values) for values in csv.reader(file, delimiter="\t", strict=True) if values}
        except csv.Error:
            return False
    return len(lengths) == 1


def _literal_rows(file: IO[str]) -> Iterator[Row]:
    """Rows of a tsv without quoting, as CC3M and CC12M are published; a quote is a character like any other.

    Only a value with doubled quotes inside quotes was quoted by its writer (pandas quotes such values alone).
    """
    names = file.readline().rstrip("\r\n").split("\t")
    for line in file:
        text = line.rstrip("\r\n")
        if text:
            yield dict(zip(names, map(_unquoted, text.split("\t")), strict=False))


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


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
    """Objects of one JSON array, decoded one by one from a buffer."""
    decoder = json.JSONDecoder()
    buffer, offset, number = "", 0, 0
    while True:
        between = _BETWEEN_OBJECTS.match(buffer, offset)
        offset = between.end() if between is not None else offset
        if buffer.startswith("]", offset):
            return
        try:
            value, offset = decoder.raw_decode(buffer, offset)
        except RecursionError as error:
            raise InputError(f"{url}: object {number}: nested too deeply") from error
        except ValueError as error:
            chunk = file.read(max(CHUNK_CHARS, len(buffer) - offset))
            if not chunk:
                raise InputError(f"{url}: not a JSON array of objects: object {number}: {error}") from error
            buffer, offset = buffer[offset:] + chunk, 0
            continue
        number += 1
        yield value if isinstance(value, dict) else {ERROR_COLUMN: f"object {number}: not a JSON object"}
