"""All pairs of 64-bit hashes within a Hamming distance, exact.

The work is split by group of tables and by partition of a group's keys, so that the same code runs in one process
(`find_pairs`) and as Ray tasks (`join_rounds`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes, pairs_of_group, plan_groups
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.engine.mix64 import mix64

HASHES_PER_PARTITION = 4_000_000  # per task: 32 MB, and three times as much at the peak
_mix64 = compiled(mix64)


@dataclass(frozen=True)
class Pairs:
    """Unique pairs of indices, left < right, with their distance in bits."""

    left: Indices
    right: Indices
    distance: npt.NDArray[np.int32]


def even_distance(hashes: Hashes, max_distance: int) -> int:
    """`max_distance`, minus one if it is odd and all distances are even (all hashes have the same parity)."""
    parities = np.bitwise_count(hashes) & 1
    all_even = len(parities) > 0 and bool((parities == parities[0]).all())
    return max_distance - (max_distance & 1) if all_even else max_distance


def as_pairs(hashes: Hashes, left: Hashes, right: Hashes) -> Pairs:
    """Pairs of hashes as sorted indices into `hashes` (sorted, unique)."""
    lower, higher = indices_of(hashes, np.minimum(left, right)), indices_of(hashes, np.maximum(left, right))
    order = np.lexsort((higher, lower))
    return Pairs(lower[order], higher[order], np.bitwise_count(left ^ right).astype(np.int32)[order])


def indices_of(hashes: Hashes, values: Hashes) -> Indices:
    """The index of each value in `hashes` (sorted). Sorted look-ups are ten times faster: they stay in the cache."""
    order = np.argsort(values)
    indices = np.empty(len(values), np.int64)
    indices[order] = np.searchsorted(hashes, values[order])
    return indices


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
    """The partition of each hash's key. Keys are mixed (SplitMix64), so that skewed keys give even partitions."""
    partitions = np.zeros(len(hashes), np.int64)
    if num_partitions == 1:
        return partitions
    for index in range(len(hashes)):
        partitions[index] = _mix64(hashes[index] & mask) % np.uint64(num_partitions)
    return partitions
