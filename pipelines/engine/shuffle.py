"""Spill files between two rounds of tasks: each task writes one file, sorted by the part that reads a row.

A spill table is a folder with one file per writing task. A file holds the rows of part 0, then those of part 1, and so
on, so that the task of a part reads one range of each file. Rows are numpy records. A task that runs again writes the
same file. Data moves through files only, so that no process holds more than its own part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.engine.mix64 import mix64
from pairloom.schemas.errors import StorageError
from pairloom.schemas.storage import storage

Rows = npt.NDArray[Any]  # records
Parts = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SpillTable:
    """A folder of files that one round of tasks writes and the next round reads."""

    folder: str
    num_files: int
    num_parts: int

    def url(self, file: int) -> str:
        """The file of one task."""
        return storage.join(self.folder, f"{file:07d}.rows")

    def write(self, file: int, rows: Rows, part_of: Parts) -> None:
        """Write the rows of one task; `part_of` is the reading part of each row."""
        order = np.argsort(part_of, kind="stable")
        edges = np.searchsorted(part_of[order], np.arange(self.num_parts + 1))
        with storage.build_locally(self.url(file)) as path, open(path, "wb") as out:
            np.save(out, edges.astype(np.int64))
            np.save(out, rows[order])

    def read(self, part: int, only: int | None = None) -> Rows:
        """The rows of one part, file by file, or from file `only`. Raises StorageError if a file is missing."""
        files = range(self.num_files) if only is None else [only]
        pieces = [self._read(file, part) for file in files]
        filled = [piece for piece in pieces if len(piece)]  # an empty file may have another column width
        return np.concatenate(filled or pieces[:1])

    def _read(self, file: int, part: int) -> Rows:
        try:
            with storage.open_read(self.url(file)) as source:
                edges = np.load(source)
                np.lib.format.read_magic(source)
                _, _, dtype = np.lib.format.read_array_header_1_0(source)
                source.seek(int(edges[part]) * dtype.itemsize, 1)
                data = source.read(int(edges[part + 1] - edges[part]) * dtype.itemsize)
        except FileNotFoundError as error:
            raise StorageError(f"{self.url(file)}: a spill file is missing; run the same command again") from error
        rows: Rows = np.frombuffer(data, dtype)
        return rows


def pack(columns: Mapping[str, npt.NDArray[Any]]) -> Rows:
    """Columns of equal length as records; a column may have several values per row."""
    kinds: Any = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    rows = np.empty(len(next(iter(columns.values()))), kinds)
    for name, column in columns.items():
        rows[name] = column
    return rows


def unpack(rows: Rows, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns of records as contiguous arrays."""
    return {name: np.ascontiguousarray(rows[name]) for name in names}


def spread(values: npt.NDArray[np.uint64], num_parts: int) -> npt.NDArray[np.int64]:
    """The part of each value, a pure function of it. Values are mixed, so that parts are even."""
    return (mix64(values) % np.uint64(num_parts)).astype(np.int64)
