"""All pairs of 64-bit hashes within a Hamming distance, none missed.

The work is cut by group of tables (`buckets`) and by partition of a group's keys, so that the same code runs in one
process (`find_pairs`) and as Ray tasks (`linked`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes, pairs_of_group, plan_groups
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices

HASHES_PER_PARTITION = 4_000_000  # searched by one task: 32 MB, and three times as much on the way


@dataclass(frozen=True)
class Pairs:
    """Pairs of indices, left < right, each once, with their distance in bits."""

    left: Indices
    right: Indices
    distance: npt.NDArray[np.int32]


def even_distance(hashes: Hashes, max_distance: int) -> int:
    """`max_distance`, less one where it is odd and all distances are even (all hashes have the same parity)."""
    parities = np.bitwise_count(hashes) & 1
    all_even = len(parities) > 0 and bool((parities == parities[0]).all())
    return max_distance - (max_distance & 1) if all_even else max_distance


def as_pairs(hashes: Hashes, left: Hashes, right: Hashes) -> Pairs:
    """Pairs of hashes as places among `hashes` (sorted, distinct), sorted."""
    lower, higher = places_of(hashes, np.minimum(left, right)), places_of(hashes, np.maximum(left, right))
    order = np.lexsort((higher, lower))
    return Pairs(lower[order], higher[order], np.bitwise_count(left ^ right).astype(np.int32)[order])


def places_of(hashes: Hashes, values: Hashes) -> Indices:
    """Where each value lies; looked up in their order, which a cache likes ten times better than any other."""
    order = np.argsort(values)
    places = np.empty(len(values), np.int64)
    places[order] = np.searchsorted(hashes, values[order])
    return places


def find_pairs(hashes: Hashes, max_distance: int) -> Pairs:
    """All pairs of sorted, distinct hashes within `max_distance`, in this process."""
    radius = even_distance(hashes, max_distance)
    none = np.empty(0, np.uint64)
    found = [(none, none)]
    if radius:
        found += [pairs_of_group(hashes, group, radius) for group in plan_groups(len(hashes), radius)]
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    return as_pairs(hashes, left, right)


@compiled
def partition_of(hashes: Hashes, mask: np.uint64, num_partitions: int) -> Indices:
    """The partition of each hash's key; keys are mixed (splitmix64), so that skewed ones are even."""
    partitions = np.zeros(len(hashes), np.int64)
    if num_partitions == 1:
        return partitions
    for place in range(len(hashes)):
        mixed = hashes[place] & mask
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) >> np.uint64(11)
        partitions[place] = mixed % np.uint64(num_partitions)
    return partitions
