"""A local disk cache of bounded size for remote tars, or for the parts of them that are needed.

All processes of a machine share the folder. One process fetches a tar; the others wait or read byte ranges meanwhile.
The least recently used files are evicted first. An evicted file stays readable in processes that have it mapped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

WHOLE_FROM = 0.25  # if more than this share of a tar's bytes is needed, the whole tar is fetched
GAP_BYTES = 1 << 20  # smaller gaps between parts are fetched too: they cost less time than another request
BLOCK_BYTES = 16 << 20  # largest request
NUM_THREADS = 2  # concurrent fetches per process
NUM_LOCKS = 64

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The byte range [offset, offset + num_bytes) of a tar."""

    offset: int
    num_bytes: int


def plan_parts(offsets: Offsets, sizes: Offsets, tar_bytes: int) -> list[Part]:
    """Byte ranges to fetch for the members of a tar: the whole tar, or sorted ranges that merge close members.

    `offsets` and `sizes` [N] are in bytes.
    """
    if sizes.sum() > WHOLE_FROM * tar_bytes:
        return [Part(0, tar_bytes)]
    parts: list[Part] = []
    order = np.argsort(offsets)
    for offset, size in zip(offsets[order].tolist(), sizes[order].tolist(), strict=True):
        last = parts[-1] if parts else None
        if last is not None:
            grown = max(last.num_bytes, offset + size - last.offset)
            if offset - (last.offset + last.num_bytes) <= GAP_BYTES and grown <= BLOCK_BYTES:
                parts[-1] = Part(last.offset, grown)
                continue
        parts.append(Part(offset, size))
    return parts


class PartsReader:
    """Reads members of a tar from a local file that is the concatenation of `parts` of it."""

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self._path, self._starts = path, [part.offset for part in parts]
        self._begins = np.cumsum([0, *(part.num_bytes for part in parts)]).tolist()
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """The bytes of one member, without a copy. Raises InputError when the file does not have all of them."""
        index = bisect_right(self._starts, offset) - 1
        begin = self._begins[index] + offset - self._starts[index]
        data = memoryview(self._map)[begin : begin + num_bytes]
        if index < 0 or begin + num_bytes > self._begins[index + 1] or len(data) != num_bytes:
            raise InputError(f"{self._path}: {num_bytes} bytes at {offset} are missing; tar is truncated")
        return data


@dataclass
class ShardCache:
    """A cache folder of about `max_bytes` at most. Pickling keeps the settings and drops running fetches."""

    folder: Path
    max_bytes: int
    _fetches: dict[Path, Future[None]] = field(default_factory=dict)
    _threads: ThreadPoolExecutor | None = None
    _process: int = 0

    def find(self, url: str, parts: Sequence[Part]) -> PartsReader | None:
        """A reader of the cached parts, or None after starting to fetch them in the background.

        Raises the error of an earlier failed fetch: StorageError, or InputError for a missing shard.
        """
        path = self._path(url, parts)
        try:
            os.utime(path)
            return PartsReader(path, parts)
        except FileNotFoundError:
            self.begin(url, parts)
            return None

    def begin(self, url: str, parts: Sequence[Part]) -> None:
        """Start to fetch parts of a tar in the background. Raises the error of an earlier failed fetch."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._threads, self._fetches, self._process = ThreadPoolExecutor(NUM_THREADS), {}, os.getpid()
        assert self._threads is not None
        path = self._path(url, parts)
        fetch = self._fetches.get(path)
        if fetch is not None and fetch.done():
            del self._fetches[path]
            fetch.result()
            fetch = None
        if fetch is None and not path.exists():
            self._fetches[path] = self._threads.submit(self._fetch, url, parts, path)

    def _fetch(self, url: str, parts: Sequence[Part], path: Path) -> None:
        with self._locked(path):
            if path.exists():
                return
            with storage.build_locally(str(path)) as scratch, open(scratch, "wb") as file:
                for part in parts:
                    end = part.offset + part.num_bytes
                    for offset in range(part.offset, end, BLOCK_BYTES):
                        file.write(_read(url, offset, min(BLOCK_BYTES, end - offset)))
        self._make_room(path)

    def _make_room(self, fresh: Path) -> None:
        found = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in _files(self.folder)]
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            if path != str(fresh):
                Path(path).unlink(missing_ok=True)
                total -= size

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold a lock between processes; the operating system releases it if the process dies."""
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / str(int(path.stem[:8], 16) % NUM_LOCKS)).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, url: str, parts: Sequence[Part]) -> Path:
        text = json.dumps([url, [(part.offset, part.num_bytes) for part in parts]])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.tar"

    def __reduce__(self) -> tuple[type[ShardCache], tuple[Path, int]]:
        return type(self), (self.folder, self.max_bytes)


def _read(url: str, offset: int, num_bytes: int) -> bytes:
    try:
        return storage.read_range(url, offset, num_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such shard; was the data set moved or removed?") from error


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(folder):
        if entry.name.endswith(".tar") and not entry.name.startswith("."):
            yield entry
