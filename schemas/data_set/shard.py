"""WebDataset tar shards: write (deterministic), index, random access.

A shard is `<name>.tar` with consecutive members `<key>.<image extension>`, `<key>.txt`, `<key>.json`, and
`<name>.parquet` with one row per sample (or per input row) that holds the offset of each image. Names have
7 digits in folders of 1,000 shards: `0000/0000012.tar`.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

SHARDS_PER_FOLDER = 1000
BLOCK = 512  # bytes of a tar block
WRITE_BYTES = 1 << 18  # buffer of the file
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "heic", "heif")


def shard_name(shard_index: int) -> str:
    """Path of a shard below its data set, without extension: `0000/0000012`."""
    return f"{shard_index // SHARDS_PER_FOLDER:04d}/{shard_index:07d}"


def make_key(shard_index: int, row: int) -> str:
    """Key of a sample: 7 digits of the shard, 5 digits of the row; keys sort in the order of the tar."""
    return f"{shard_index:07d}{row:05d}"


@dataclass(frozen=True)
class ByteRange:
    """The range of bytes of a member in its tar."""

    offset: int
    num_bytes: int


_MODE_AND_OWNER = b"0000444\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_TYPE_AND_MAGIC = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
_SUM_OF_THE_REST = sum(_MODE_AND_OWNER + _TIME + 8 * b" " + _TYPE_AND_MAGIC)  # its own field counts as spaces


def _header(name: str, num_bytes: int) -> bytes:
    """A ustar header without time, owner or other state, so that equal content gives equal tars."""
    encoded = name.encode()
    if len(encoded) > 100:
        raise ValueError(f"member name longer than 100 bytes: {name}")
    size = b"%011o" % num_bytes
    checksum = _SUM_OF_THE_REST + sum(encoded) + sum(size)
    return b"%b%b%b\0%b%06o\0 %b" % (encoded.ljust(100, b"\0"), _MODE_AND_OWNER, size, _TIME, checksum, _TYPE_AND_MAGIC)


class ShardWriter:
    """Writes one tar to a local path; equal members give equal bytes."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", WRITE_BYTES)  # noqa: SIM115  closed by close()
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.num_samples = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> dict[str, ByteRange]:
        """Append the members of one sample (extension -> bytes). Returns the byte range of each by extension."""
        ranges, offset = {}, self.num_bytes
        pieces: list[bytes] = []
        for extension, data in members.items():
            num_filling = -len(data) % BLOCK
            ranges[extension] = ByteRange(offset + BLOCK, len(data))
            pieces += (_header(f"{key}.{extension}", len(data)), data, bytes(num_filling))
            offset += BLOCK + len(data) + num_filling
        self._write(b"".join(pieces))  # one large write is faster than several small ones, for the digest too
        self.num_samples += 1
        return ranges

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    def close(self) -> str:
        """Finish the tar; returns the hex sha256 of the whole file."""
        if not self._file.closed:
            self._write(bytes(2 * BLOCK))
            self._file.close()
        return self._digest.hexdigest()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class ShardReader:
    """Random access to the bytes of one tar: memory map if local, ranged reads if remote."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._map: mmap.mmap | None = None
        if storage.is_local(url):
            path = Path(storage.local_path(url))
            if not path.exists():
                raise InputError(f"{url}: no such shard; check whether the data set was moved or removed")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """The bytes of one member. Raises StorageError if storage fails, InputError if the tar is truncated."""
        if self._map is not None:
            data = self._map[offset : offset + num_bytes]
        else:
            data = storage.read_range(self.url, offset, num_bytes)
        if len(data) != num_bytes:
            raise InputError(f"{self.url}: truncated, {num_bytes} bytes at {offset} are missing; restore the tar")
        return data

    def view(self, offset: int, num_bytes: int) -> bytes | memoryview:
        """As `read`, without a copy if the tar is local."""
        if self._map is None or offset + num_bytes > len(self._map):
            return self.read(offset, num_bytes)
        return memoryview(self._map)[offset : offset + num_bytes]

    def close(self) -> None:
        """Close the memory map."""
        if self._map is not None:
            self._map.close()
