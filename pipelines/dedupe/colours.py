"""Which hashes may belong to images of the same colours: only those are linked, though many more look alike in grey.

Two thumbnails agree when their absolute differences sum up to at most a limit. The sums over a cell of the thumbnail
then differ by no more than that in all cells together. So the search knows of each hash the least and the largest sum
that any of its images has in each cell: 24 bytes for 192, rounded outwards, so that no pair that agrees is lost. Of
photographs of one composition (16 bits of the hash apart) one pair in a hundred is left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.buckets import Hashes
from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.perceptual import places_of
from pipelines.dedupe.spill import Rows, pack
from schemas.sample import THUMBNAIL_SIDE

CELLS = 2  # on a side of the thumbnail
CELL_SIDE = THUMBNAIL_SIDE // CELLS
CELL_PIXELS = CELL_SIDE**2

Sums = npt.NDArray[np.uint8]  # [hashes, cells x channels], in units of CELL_PIXELS


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


def may_agree(rows: Rows, left: Hashes, right: Hashes, limit: int) -> npt.NDArray[np.bool_]:
    """For pairs of the hashes of `rows` whether thumbnails of theirs may differ by at most `limit` in all."""
    low, high = np.ascontiguousarray(rows["low"]), np.ascontiguousarray(rows["high"])
    lefts, rights = places_of(rows["hash"], left), places_of(rows["hash"], right)
    return _may_agree(low, high, lefts, rights, limit // CELL_PIXELS)


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
