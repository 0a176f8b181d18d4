"""Outputs of a locked tower for each image or caption, computed once per run.

A locked tower without augmentation is a function of its input, and often takes most of a step's time. Its outputs are
kept in memory and appended to a file of the run, so that a resumed run has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

MAX_BYTES = 4 << 30  # per rank and tower; further outputs are computed every time
KEY_CHARS = 32


class FrozenTowerCache:
    """Pooled outputs [P] by the uid of a sample, or by the hash of its image."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width
        self._record = np.dtype([("key", f"S{KEY_CHARS}"), ("values", np.float32, (width,))])
        self._rows: dict[str, npt.NDArray[np.float32]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._load()

    def _load(self) -> None:
        """Read whole records; a half-written last one is cut away."""
        num_records = self._path.stat().st_size // self._record.itemsize
        records = np.fromfile(self._path, self._record, count=num_records)
        with self._path.open("r+b") as file:
            file.truncate(num_records * self._record.itemsize)
        self._rows = {record["key"].decode(): record["values"] for record in records}

    def lookup(self, names: Sequence[str], compute: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Outputs [B, P] of inputs; `compute` gives those at the positions that are missing."""
        keys = [name[:KEY_CHARS] for name in names]
        missing = list({key: index for index, key in enumerate(keys) if key not in self._rows}.values())
        fresh = compute(missing).cpu().numpy().astype(np.float32) if missing else np.empty((0, self._width), np.float32)
        found = {keys[index]: values for index, values in zip(missing, fresh, strict=True)}
        rows = np.stack([found[key] if key in found else self._rows[key] for key in keys])
        self._keep(found)
        return torch.from_numpy(rows)

    def _keep(self, found: dict[str, npt.NDArray[np.float32]]) -> None:
        if not found or (len(self._rows) + len(found)) * self._record.itemsize > MAX_BYTES:
            return
        records = np.array([(key.encode(), values) for key, values in found.items()], self._record)
        with self._path.open("ab") as file:
            file.write(records.tobytes())
        self._rows |= found
