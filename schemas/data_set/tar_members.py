"""The members of WebDataset tars of any tool: any order, dots and case in their keys, links, concatenated archives.

A tar ends with a block of zeros. Bytes that are neither a member nor such a block are damage, not the end: tarfile and
most readers stop there silently, and lose all samples behind it.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO

from pairloom.schemas.data_set.shard import BLOCK, ByteRange
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

_ZEROS = bytes(BLOCK)
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass(frozen=True)
class Member:
    """One member of a tar: `extension` is everything after the first dot of its base name, lower-cased."""

    key: str
    extension: str
    byte_range: ByteRange


def index_tar(url: str) -> list[Member]:
    """Members of a tar in their order, without reading the bodies.

    Raises InputError if the file is no tar, compressed, truncated or damaged between two members.
    """
    ranges: dict[str, ByteRange] = {}  # by name, for links
    members = []
    try:
        with storage.open_read(url) as file:
            for info in _headers(file):
                byte_range = _range_of(info, ranges)
                if byte_range is not None:
                    ranges[info.name] = byte_range
                    members.append(_member(info.name, byte_range))
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such tar; check the path") from error
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise InputError(f"{url}: not a readable tar: {error}; replace or remove it") from error
    return members


def _member(name: str, byte_range: ByteRange) -> Member:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return Member(f"{folder}/{stem}" if folder else stem, extension.lower(), byte_range)


def _headers(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The headers of all archives in a file, up to its end. Raises tarfile.TarError."""
    start: int | None = 0
    while start is not None:
        start = yield from _archive(file, start)


def _archive(file: IO[bytes], start: int) -> Generator[tarfile.TarInfo, None, int | None]:
    """The headers of the archive at an offset. Returns the offset of the next archive, None at the end of the file.

    Names that are not UTF-8 are escaped: `caf\\xe9.jpg`.
    """
    file.seek(start)
    _refuse_packed(file.read(8))
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
        num_members = 0
        for info in tar:
            num_members += 1
            yield info
        end = tar.offset
    return _next_archive(file, end, num_members)


def _refuse_packed(first: bytes) -> None:
    if not first:
        raise tarfile.ReadError("it is empty")
    for magic, name in _PACKED.items():
        if first.startswith(magic):
            raise tarfile.ReadError(f"it is compressed with {name}; decompress it")


def _next_archive(file: IO[bytes], end: int, num_members: int) -> int | None:
    """The offset of the archive after blocks of zeros at `end`; None if only zeros follow."""
    file.seek(end)
    block = file.read(BLOCK)
    if num_members and not block:
        raise tarfile.ReadError(f"it ends at byte {end} without a closing block; it was truncated")
    if block and block != _ZEROS[: len(block)]:
        raise tarfile.ReadError(f"damaged at byte {end}: neither a member nor the end of the archive")
    while block == _ZEROS[: len(block)] and block:
        end += len(block)
        block = file.read(BLOCK)
    return end if block else None


def _range_of(info: tarfile.TarInfo, ranges: dict[str, ByteRange]) -> ByteRange | None:
    """The bytes of a file or of the file that a link names; none (0 bytes) if that is not in the tar."""
    if info.issparse():
        raise tarfile.ReadError(f"{info.name} is a sparse member; write it again without --sparse")
    if info.isfile():
        return ByteRange(info.offset_data, info.size)
    if not (info.islnk() or info.issym()):
        return None
    folder = posixpath.dirname(info.name) if info.issym() else ""
    target = posixpath.normpath(posixpath.join(folder, info.linkname))
    return ranges.get(target, ranges.get(info.linkname, ByteRange(info.offset_data, 0)))
