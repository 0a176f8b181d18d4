"""All pairs of 64-bit hashes within a Hamming distance, none missed.

The tables (`buckets.plan_masks`) are cut into tasks by table and by partition of the keys: `search` handles any
slice of the work, so that the same code runs in one process and as one Ray task a slice. A task holds the hashes of
its partition and what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.buckets import Hashes, is_first_table, pairs_of_table, plan_masks
from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.components import Indices

HASHES_PER_PARTITION = 16_000_000  # bounds what one task sorts: 128 MB, and as much to move its bits
MAX_TASKS_PER_PARTITION = 16


@dataclass(frozen=True)
class Pairs:
    """Pairs of indices, left < right, each once, with their distance in bits."""

    left: Indices
    right: Indices
    distance: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Slice:
    """Part of a search: tables first_table..last_table (exclusive), and one of several partitions of their keys."""

    first_table: int
    last_table: int
    partition: int
    num_partitions: int


def even_distance(hashes: Hashes, max_distance: int) -> int:
    """`max_distance`, less one where it is odd and all distances are even (all hashes have the same parity)."""
    parities = np.bitwise_count(hashes) & 1
    all_even = len(parities) > 0 and bool((parities == parities[0]).all())
    return max_distance - (max_distance & 1) if all_even else max_distance


def cut(num_hashes: int, num_tables: int) -> list[Slice]:
    """The slices of a search: each is one task."""
    num_partitions = max(1, -(-num_hashes // HASHES_PER_PARTITION))
    step = max(1, -(-num_tables // MAX_TASKS_PER_PARTITION))
    return [
        Slice(first, min(first + step, num_tables), partition, num_partitions)
        for first in range(0, num_tables, step)
        for partition in range(num_partitions)
    ]


def search(hashes: Hashes, masks: Sequence[int], max_distance: int, part: Slice) -> Pairs:
    """The pairs that this slice finds. `hashes` are sorted and distinct; the first table of a pair tells it."""
    found = []
    for table in range(part.first_table, part.last_table):
        values = _partition(hashes, np.uint64(masks[table]), part.partition, part.num_partitions)
        left, right = pairs_of_table(values, masks[table], max_distance)
        new = is_first_table(left ^ right, list(masks[:table]))
        found.append(_as_indices(hashes, left[new], right[new]))
    return join_pairs(found)


def _as_indices(hashes: Hashes, left: Hashes, right: Hashes) -> Pairs:
    low, high = np.minimum(left, right), np.maximum(left, right)
    distance = np.bitwise_count(left ^ right).astype(np.int32)
    return Pairs(np.searchsorted(hashes, low), np.searchsorted(hashes, high), distance)


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several slices, sorted, so that the cut of the work never shows."""
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    left = np.concatenate([part.left for part in parts])
    right = np.concatenate([part.right for part in parts])
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], np.concatenate([part.distance for part in parts])[order])


def find_pairs(hashes: Hashes, max_distance: int) -> Pairs:
    """All pairs of sorted, distinct hashes within `max_distance`, in this process."""
    radius = even_distance(hashes, max_distance)
    if radius == 0 or len(hashes) < 2:
        return join_pairs([])
    masks = plan_masks(len(hashes), radius)
    return join_pairs([search(hashes, masks, radius, part) for part in cut(len(hashes), len(masks))])


@compiled
def _partition(hashes: Hashes, mask: np.uint64, partition: int, num_partitions: int) -> Hashes:
    """The hashes whose keys fall into one partition; keys are mixed (splitmix64), so that skewed ones are even."""
    if num_partitions == 1:
        return hashes
    chosen = np.empty(len(hashes), np.uint64)
    num_chosen = 0
    for value in hashes:
        mixed = value & mask
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) >> np.uint64(11)
        if mixed % np.uint64(num_partitions) == np.uint64(partition):
            chosen[num_chosen] = value
            num_chosen += 1
    return chosen[:num_chosen].copy()
