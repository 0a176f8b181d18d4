"""Remote tars, or the parts of them that are wanted, in a bounded folder on a local disk.

All processes of a machine share the folder: one fetches a tar, the others wait for it or read ranges meanwhile. What
was used longest ago goes first; a file that goes while another process has it mapped stays readable there.
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

WHOLE_FROM = 0.25  # of a tar's bytes wanted: then all of it is fetched
GAP_BYTES = 1 << 20  # between two wanted parts that one request still takes; about what a request's wait costs
BLOCK_BYTES = 16 << 20  # of one request
NUM_THREADS = 2  # fetches at a time in one process
NUM_LOCKS = 64

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Bytes offset .. offset + num_bytes of a tar."""

    offset: int
    num_bytes: int


def plan_parts(offsets: Offsets, sizes: Offsets, tar_bytes: int) -> list[Part]:
    """What to fetch of a tar for members at `offsets`: all of it, or ranges that take neighbours along."""
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
    """Members of a tar from a local file that holds `parts` of it, one after another."""

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self._path, self._starts = path, [part.offset for part in parts]
        self._places = np.cumsum([0, *(part.num_bytes for part in parts)]).tolist()
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """The bytes of one member. Raises InputError when they are not there."""
        index = bisect_right(self._starts, offset) - 1
        begin = self._places[index] + offset - self._starts[index]
        data = memoryview(self._map)[begin : begin + num_bytes]
        if index < 0 or begin + num_bytes > self._places[index + 1] or len(data) != num_bytes:
            raise InputError(f"{self._path}: {num_bytes} bytes at {offset} are missing; tar is truncated")
        return data


@dataclass
class ShardCache:
    """A folder of at most about `max_bytes`; goes to another process without what is under way."""

    folder: Path
    max_bytes: int
    _fetches: dict[Path, Future[None]] = field(default_factory=dict)
    _threads: ThreadPoolExecutor | None = None
    _process: int = 0

    def find(self, url: str, parts: Sequence[Part]) -> PartsReader | None:
        """The tar from the folder, or None while it is fetched in the background. Raises StorageError."""
        path = self._path(url, parts)
        try:
            os.utime(path)
            return PartsReader(path, parts)
        except FileNotFoundError:
            self.begin(url, parts)
            return None

    def begin(self, url: str, parts: Sequence[Part]) -> None:
        """Fetch a tar in the background. Raises what an earlier attempt raised."""
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
        """One process at a time; the system releases the lock of a process that dies."""
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
