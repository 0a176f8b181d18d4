"""Link near hashes only if their images may have near colours: most near hashes are alike in grey only.

Two thumbnails agree if their absolute differences sum to at most a limit. Then the sums over cells of the thumbnail
differ by at most that limit in all cells together. For each hash, the smallest and the largest sum of its images are
kept per cell: 24 bytes instead of 192, rounded outwards, so that no agreeing pair is lost.

The search for pairs uses hashes alone, because it copies each hash many times. Three rounds of tasks:

    search   part of the search -> pairs, and requests for the colours of their hashes
    colours  part of the hashes -> requested colours, by part of the search
    link     part of the search -> pairs that may agree
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming_pairs import indices_of
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.images.columns import THUMBNAIL_SIDE
from pairloom.schemas.storage import storage

CELLS = 2  # per side of the thumbnail
CELL_SIDE = THUMBNAIL_SIDE // CELLS
CELL_PIXELS = CELL_SIDE**2

Sums = npt.NDArray[np.uint8]  # [hashes, cells x channels], in units of CELL_PIXELS


@dataclass(frozen=True)
class Colours:
    """The spill tables of the rounds."""

    folder: str
    num_batches: int  # batches of samples
    num_searches: int
    num_parts: int  # parts of the hashes

    def _table(self, name: str, num_files: int, num_parts: int) -> SpillTable:
        return SpillTable(storage.join(self.folder, name), num_files, num_parts)

    @property
    def known(self) -> SpillTable:
        """hash, low, high; by part of the hashes."""
        return self._table("known", self.num_batches, self.num_parts)

    @property
    def pairs(self) -> SpillTable:
        """left, right; one file per part of the search."""
        return self._table("pairs", self.num_searches, 1)

    @property
    def requested(self) -> SpillTable:
        """hash, task; by part of the hashes."""
        return self._table("requested", self.num_searches, self.num_parts)

    @property
    def reported(self) -> SpillTable:
        """hash, low, high; by part of the search."""
        return self._table("reported", self.num_parts, self.num_searches)


def write_colours(colours: Colours, batch: int, samples: Rows) -> None:
    """Write the colour bounds of the hashes of some samples."""
    rows = colour_rows(samples)
    colours.known.write(batch, rows, spread(rows["hash"], colours.num_parts))


def request_colours(colours: Colours, task: int, left: Hashes, right: Hashes) -> None:
    """Write the pairs of one part of the search, and request the colours of their hashes."""
    colours.pairs.write(task, pack({"left": left, "right": right}), np.zeros(len(left), np.int64))
    hashes = unique_sorted(np.concatenate([left, right]))
    rows = pack({"hash": hashes, "task": np.full(len(hashes), task, np.int64)})
    colours.requested.write(task, rows, spread(hashes, colours.num_parts))


def report_colours(colours: Colours, part: int) -> None:
    """Write the requested colours of one part of the hashes."""
    known, requested = merged(colours.known.read(part)), colours.requested.read(part)
    rows = known[np.searchsorted(known["hash"], requested["hash"])]
    colours.reported.write(part, rows, requested["task"])


def pairs_with_near_colours(colours: Colours, task: int, limit: int) -> tuple[Hashes, Hashes]:
    """The pairs of one part of the search whose thumbnails may differ by at most `limit` in total."""
    pairs, bounds = colours.pairs.read(0, only=task), np.sort(colours.reported.read(task), order="hash")
    left, right = pairs["left"], pairs["right"]
    low, high = np.ascontiguousarray(bounds["low"]), np.ascontiguousarray(bounds["high"])
    lefts, rights = indices_of(bounds["hash"], left), indices_of(bounds["hash"], right)
    agree = _may_agree(low, high, lefts, rights, limit // CELL_PIXELS)
    return left[agree], right[agree]


def colour_rows(samples: Rows) -> Rows:
    """The unique hashes of samples (`SampleRecords` rows) with the smallest and largest sums of their cells."""
    hashed = samples[samples["has_phash"]]
    cells = hashed["thumbnail"].reshape(len(hashed), CELLS, CELL_SIDE, CELLS, CELL_SIDE, 3)
    sums = cells.sum(axis=(2, 4), dtype=np.int32).reshape(len(hashed), CELLS * CELLS * 3)
    low, high = (sums // CELL_PIXELS).astype(np.uint8), (-(-sums // CELL_PIXELS)).astype(np.uint8)
    return merged(pack({"hash": hashed["phash"], "low": low, "high": high}))


def merged(rows: Rows) -> Rows:
    """One row per hash, sorted."""
    if not len(rows):
        return rows
    order = np.argsort(rows["hash"], kind="stable")
    hashes, starts = np.unique(rows["hash"][order], return_index=True)
    low = np.minimum.reduceat(rows["low"][order], starts, axis=0)
    high = np.maximum.reduceat(rows["high"][order], starts, axis=0)
    return pack({"hash": hashes, "low": low, "high": high})


@compiled
def _may_agree(
    low: Sums, high: Sums, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], limit: int
) -> npt.NDArray[np.bool_]:
    agree = np.empty(len(left), np.bool_)
    for pair in range(len(left)):
        one, other, apart = left[pair], right[pair], np.int64(0)
        for cell in range(low.shape[1]):
            gap = max(np.int64(low[one, cell]) - high[other, cell], np.int64(low[other, cell]) - high[one, cell])
            apart += max(gap, 0)
        agree[pair] = apart <= limit
    return agree
