"""Near hashes are linked only where their images may have the same colours: many more look alike in grey.

Two thumbnails agree when their absolute differences sum up to at most a limit. The sums over a cell of the thumbnail
then differ by no more than that in all cells together. Of each hash the least and the largest sum that any of its
images has in each cell are known: 24 bytes for 192, rounded outwards, so that no pair that agrees is lost.

The search for pairs works on hashes alone, for it needs each of them many times over. Three rounds of tasks:

    search   part of the search -> pairs, and questions for the colours of the hashes in them
    colours  part of the hashes -> colours of the hashes that were asked for, by part of the search
    link     part of the search -> the pairs that may agree
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming_pairs import indices_of
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.images.columns import THUMBNAIL_SIDE
from pairloom.schemas.storage import storage

CELLS = 2  # on a side of the thumbnail
CELL_SIDE = THUMBNAIL_SIDE // CELLS
CELL_PIXELS = CELL_SIDE**2

Sums = npt.NDArray[np.uint8]  # [hashes, cells x channels], in units of CELL_PIXELS


@dataclass(frozen=True)
class Colours:
    """Where the rounds lie."""

    folder: str
    num_batches: int  # of samples
    num_searches: int
    num_parts: int  # of the hashes

    def _table(self, name: str, num_files: int, num_parts: int) -> SpillTable:
        return SpillTable(storage.join(self.folder, name), num_files, num_parts)

    @property
    def known(self) -> SpillTable:
        """hash, low, high; by part of the hashes."""
        return self._table("known", self.num_batches, self.num_parts)

    @property
    def pairs(self) -> SpillTable:
        """left, right; a file for each part of the search."""
        return self._table("pairs", self.num_searches, 1)

    @property
    def asked(self) -> SpillTable:
        """hash, task; by part of the hashes."""
        return self._table("asked", self.num_searches, self.num_parts)

    @property
    def told(self) -> SpillTable:
        """hash, low, high; by part of the search."""
        return self._table("told", self.num_parts, self.num_searches)


def hand_out_colours(colours: Colours, batch: int, samples: Rows) -> None:
    """Keep what colours the hashes of some samples have."""
    rows = colour_rows(samples)
    colours.known.write(batch, rows, spread(rows["hash"], colours.num_parts))


def ask_for_colours(colours: Colours, task: int, left: Hashes, right: Hashes) -> None:
    """Keep the pairs that one part of the search has found, and ask for the colours of their hashes."""
    colours.pairs.write(task, pack({"left": left, "right": right}), np.zeros(len(left), np.int64))
    hashes = np.unique(np.concatenate([left, right]), return_index=True)[0]  # sorts; else it would count by a table
    rows = pack({"hash": hashes, "task": np.full(len(hashes), task, np.int64)})
    colours.asked.write(task, rows, spread(hashes, colours.num_parts))


def tell_colours(colours: Colours, part: int) -> None:
    """Answer what was asked of one part of the hashes."""
    known, asked = merged(colours.known.read(part)), colours.asked.read(part)
    colours.told.write(part, known[np.searchsorted(known["hash"], asked["hash"])], asked["task"])


def pairs_that_may_agree(colours: Colours, task: int, limit: int) -> tuple[Hashes, Hashes]:
    """The pairs of one part of the search whose images may differ by at most `limit` in all."""
    pairs, told = colours.pairs.read(0, only=task), np.sort(colours.told.read(task), order="hash")
    left, right = pairs["left"], pairs["right"]
    low, high = np.ascontiguousarray(told["low"]), np.ascontiguousarray(told["high"])
    lefts, rights = indices_of(told["hash"], left), indices_of(told["hash"], right)
    agree = _may_agree(low, high, lefts, rights, limit // CELL_PIXELS)
    return left[agree], right[agree]


def colour_rows(samples: Rows) -> Rows:
    """The distinct hashes of some samples (records of `Slim`) with the least and the largest sums of their cells."""
    hashed = samples[samples["has_phash"]]
    cells = hashed["thumbnail"].reshape(len(hashed), CELLS, CELL_SIDE, CELLS, CELL_SIDE, 3)
    sums = cells.sum(axis=(2, 4), dtype=np.int32).reshape(len(hashed), CELLS * CELLS * 3)
    low, high = (sums // CELL_PIXELS).astype(np.uint8), (-(-sums // CELL_PIXELS)).astype(np.uint8)
    return merged(pack({"hash": hashed["phash"], "low": low, "high": high}))


def merged(rows: Rows) -> Rows:
    """One row for each hash, sorted."""
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
