"""Equal images by their bytes or their pixels, and the samples that repeat both image and caption.

Rows are in the order of their uids, so "the first" always means "the smallest uid".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.union_find import Indices, connect
from pairloom.pipelines.dedupe.sample_records import Slim

Halves = npt.NDArray[np.uint64]  # [rows, 2]: the first 128 bits of a hash, big-endian


def first_of_equals(hashes: Halves) -> Indices:
    """For each row the first row with the same hash."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    return _first_in_run(order, hashes[order, 0], hashes[order, 1])


def _first_in_run(order: Indices, *columns: npt.NDArray[np.generic]) -> Indices:
    """`columns` are sorted by `order`: spread the first row of each run of equal values over the run."""
    starts = np.ones(len(order), bool)
    if len(order):
        starts[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    first = np.empty_like(order)
    first[order] = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return first


def equal_images(slim: Slim) -> Indices:
    """For each row the first row of its image: equal bytes as received or as stored, or equal pixels."""
    firsts = [first_of_equals(hashes) for hashes in (slim.received, slim.stored, slim.pixels)]
    return connect(slim.num_rows, np.tile(np.arange(slim.num_rows), len(firsts)), np.concatenate(firsts))


def best_of(groups: Indices, ranks: Indices) -> Indices:
    """For each row the row of its group that comes first in the keep order."""
    order = np.lexsort((ranks, groups))
    return _first_in_run(order, groups[order])


def best_of_captions(images: Indices, captions: npt.NDArray[np.uint64], ranks: Indices) -> Indices:
    """For each row the best row with its image and its caption."""
    order = np.lexsort((ranks, captions, images))
    return _first_in_run(order, images[order], captions[order])
