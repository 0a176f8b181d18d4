"""All pairs of 64-bit hashes within a Hamming distance, none missed.

Split the 64 bits in m blocks. Two hashes within r bits agree in at least m - r blocks, so they share a bucket in
one of the C(m, m - r) tables whose key is a choice of m - r blocks; each pair of a bucket is verified by popcount.
A wider key means smaller buckets and more tables: `plan_tables` weighs both by the number of hashes.

A table can be cut into partitions by a hash of the key: `search` handles any slice of the work, so that the same
code runs in one process and as one Ray task a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.components import Indices

Hashes = npt.NDArray[np.uint64]

NUM_BITS = 64
ENTROPY_PER_BIT = 0.85  # hashes of photographs fill buckets less evenly than random bits (measured: FACTS)
SORT_COST, VERIFY_COST = 60.0, 1.5  # ns a hash a table, ns a pair
HASHES_PER_PARTITION = 8_000_000  # bounds what one task sorts
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


def plan_tables(num_hashes: int, max_distance: int) -> Hashes:
    """The key masks of the tables that find every pair within `max_distance`, cheapest for this many hashes."""
    if max_distance == 0:
        return np.array([2**NUM_BITS - 1], np.uint64)
    choices = range(max_distance + 1, min(NUM_BITS, max_distance + 8) + 1)
    num_blocks = min(choices, key=lambda blocks: _cost(num_hashes, max_distance, blocks))
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [(1 << stop) - (1 << start) for start, stop in pairwise(edges)]
    return np.array([sum(chosen) for chosen in combinations(blocks, num_blocks - max_distance)], np.uint64)


def _cost(num_hashes: int, max_distance: int, num_blocks: int) -> float:
    key_bits = NUM_BITS * (num_blocks - max_distance) / num_blocks * ENTROPY_PER_BIT
    pairs = num_hashes**2 / 2 / 2**key_bits
    return comb(num_blocks, max_distance) * (SORT_COST * num_hashes + VERIFY_COST * pairs)


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


def search(hashes: Hashes, masks: Hashes, max_distance: int, part: Slice) -> Pairs:
    """The pairs that this slice finds. `hashes` are unique; a pair is given by the first table that it agrees in."""
    found = []
    for table in range(part.first_table, part.last_table):
        keys = hashes & masks[table]
        members = np.arange(len(hashes))
        if part.num_partitions > 1:
            members = np.flatnonzero(_scatter(keys) % np.uint64(part.num_partitions) == part.partition)
            keys = keys[members]
        order = np.argsort(keys)
        found.append(_verify(keys[order], members[order], hashes, masks[: table + 1], max_distance))
    return join_pairs([Pairs(left, right, distance) for left, right, distance in found])


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of several slices, sorted, so that the cut of the work never shows."""
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    left = np.concatenate([part.left for part in parts])
    right = np.concatenate([part.right for part in parts])
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], np.concatenate([part.distance for part in parts])[order])


def find_pairs(hashes: Hashes, max_distance: int) -> Pairs:
    """All pairs of unique hashes within `max_distance`, in this process."""
    radius = even_distance(hashes, max_distance)
    if radius == 0 or len(hashes) < 2:
        return join_pairs([])
    masks = plan_tables(len(hashes), radius)
    return join_pairs([search(hashes, masks, radius, part) for part in cut(len(hashes), len(masks))])


def _scatter(keys: Hashes) -> Hashes:
    """A mixing of the bits (splitmix64's), so that partitions of skewed keys are even."""
    with np.errstate(over="ignore"):
        mixed = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed ^ (mixed >> np.uint64(27))) >> np.uint64(11)


@compiled
def _popcount(bits: np.uint64) -> np.int64:
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _is_first_table(difference: np.uint64, masks: Hashes) -> bool:
    """True unless an earlier table than the last of `masks` has both hashes in one bucket."""
    for table in range(len(masks) - 1):  # noqa: SIM110  numba compiles no all() over a generator
        if difference & masks[table] == 0:
            return False
    return True


@compiled
def _verify(
    keys: Hashes, members: Indices, hashes: Hashes, masks: Hashes, max_distance: int
) -> tuple[Indices, Indices, npt.NDArray[np.int32]]:
    """Pairs within `max_distance` inside each run of equal keys; `keys` are sorted, `members` go with them."""
    values = hashes[members]  # in key order, so that a bucket lies together in memory
    left, right = np.empty(1024, np.int64), np.empty(1024, np.int64)
    distances = np.empty(1024, np.int32)
    num_found = 0
    start = 0
    for here in range(len(keys)):
        if keys[here] != keys[start]:
            start = here
        for there in range(start, here):
            difference = values[here] ^ values[there]
            distance = _popcount(difference)
            if distance <= max_distance and _is_first_table(difference, masks):
                if num_found == len(left):
                    left, right = np.concatenate((left, left)), np.concatenate((right, right))
                    distances = np.concatenate((distances, distances))
                left[num_found] = min(members[here], members[there])
                right[num_found] = max(members[here], members[there])
                distances[num_found] = distance
                num_found += 1
    return left[:num_found], right[:num_found], distances[:num_found]
