"""Exact duplicates: images with equal bytes or pixels, and samples with equal image and caption.

Rows are sorted by uid, so that the first row has the smallest uid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.union_find import Indices, connect
from pairloom.pipelines.dedupe.sample_records import SampleRecords

Halves = npt.NDArray[np.uint64]  # [rows, 2]: the first 128 bits of a hash, big-endian


def first_of_equals(hashes: Halves) -> Indices:
    """Per row: the first row with the same hash."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    return _first_in_run(order, hashes[order, 0], hashes[order, 1])


def _first_in_run(order: Indices, *columns: npt.NDArray[np.generic]) -> Indices:
    """Per row: the first row of its run of equal values; `columns` are sorted by `order`."""
    starts = np.ones(len(order), bool)
    if len(order):
        starts[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    first = np.empty_like(order)
    first[order] = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return first


def equal_images(records: SampleRecords) -> Indices:
    """Per row: the first row of its image (equal received bytes, stored bytes or pixels)."""
    firsts = [first_of_equals(hashes) for hashes in (records.received, records.stored, records.pixels)]
    return connect(records.num_rows, np.tile(np.arange(records.num_rows), len(firsts)), np.concatenate(firsts))


def best_of(groups: Indices, ranks: Indices) -> Indices:
    """Per row: the row of its group that is first in the keep order."""
    order = np.lexsort((ranks, groups))
    return _first_in_run(order, groups[order])


def best_of_captions(images: Indices, captions: npt.NDArray[np.uint64], ranks: Indices) -> Indices:
    """Per row: the best row with the same image and caption."""
    order = np.lexsort((ranks, captions, images))
    return _first_in_run(order, images[order], captions[order])
