"""All pairs of 256-bit hashes within a Hamming distance, exact: tables over their four words, then verification.

Two hashes within r bits differ in at most q = r // 4 bits of one of their four 64-bit words. That word, split in m
blocks, agrees in m - q of them. A table is a word and a choice of m - q of its blocks, the key. Hashes of one bucket
are compared in all 256 bits. A large (hot) bucket is split by the words outside its key if that saves comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations, pairwise
from math import comb
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import ENTROPY_PER_BIT, NUM_BITS, popcount
from pairloom.pipelines.algorithms.hamming_pairs import Pairs
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices

Hashes256: TypeAlias = npt.NDArray[np.uint64]  # [hashes, 4], the highest bits first
Table: TypeAlias = tuple[int, int]  # word, mask

NUM_WORDS = 4
HOT_BUCKET = 4096  # hashes
SORT_COST, VERIFY_COST = 100.0, 2.0  # ns per hash and table, ns per pair


def unpack_hashes(data: bytes) -> Hashes256:
    """Hashes of 32 bytes each, as [hashes, 4] words."""
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, NUM_WORDS)


def distance256(left: Hashes256, right: Hashes256) -> npt.NDArray[np.int32]:
    """Number of different bits of each pair."""
    distances: npt.NDArray[np.int32] = np.bitwise_count(left ^ right).sum(axis=-1, dtype=np.int32)
    return distances


def plan_tables(num_hashes: int, max_distance: int, words: Sequence[int] = range(NUM_WORDS)) -> list[Table]:
    """The tables that find every pair within `max_distance` bits, for hashes that differ in `words` only."""
    radius = max_distance // len(words)
    num_blocks = min(range(radius + 1, radius + 8), key=partial(_cost, num_hashes, radius))
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [(1 << stop) - (1 << start) for start, stop in pairwise(edges)]
    keys = [sum(chosen) for chosen in combinations(blocks, num_blocks - radius)]
    return [(word, key) for word in words for key in keys]


def _cost(num_hashes: int, radius: int, num_blocks: int) -> float:
    """Estimated nanoseconds for the tables of one word: wider keys give smaller buckets and more tables."""
    key_bits = NUM_BITS * (num_blocks - radius) / num_blocks * ENTROPY_PER_BIT
    pairs = num_hashes**2 / 2 / 2**key_bits
    return comb(num_blocks, radius) * (SORT_COST * num_hashes + VERIFY_COST * pairs)


def pairs_of_table256(hashes: Hashes256, tables: Sequence[Table], table: int, radius: int) -> tuple[Indices, Indices]:
    """Indices of the pairs that this table finds and no earlier table does. `hashes` are unique."""
    word, mask = tables[table]
    left, right = _pairs_by_key(hashes, hashes[:, word] & np.uint64(mask), radius, [word])
    differences = hashes[left] ^ hashes[right]
    is_first = np.ones(len(left), bool)
    for earlier, earlier_mask in tables[:table]:
        is_first &= (differences[:, earlier] & np.uint64(earlier_mask)) != 0
    return left[is_first], right[is_first]


def _pairs_by_key(
    hashes: Hashes256, keys: npt.NDArray[np.uint64], radius: int, used: Sequence[int]
) -> tuple[Indices, Indices]:
    """Pairs within `radius` among hashes with equal keys. `used`: words that are part of a key."""
    order = np.argsort(keys, kind="stable")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]])
    is_hot = np.diff(edges) > HOT_BUCKET
    left, right = _compare(hashes, order, edges[:-1][~is_hot], edges[1:][~is_hot], radius)
    lefts, rights = [left], [right]
    for start, stop in zip(edges[:-1][is_hot].tolist(), edges[1:][is_hot].tolist(), strict=True):
        members = order[start:stop]
        more = _pairs_of_hot(hashes[members], radius, used)
        lefts.append(members[more[0]])
        rights.append(members[more[1]])
    return np.concatenate(lefts), np.concatenate(rights)


def _pairs_of_hot(hashes: Hashes256, radius: int, used: Sequence[int]) -> tuple[Indices, Indices]:
    """Pairs of one hot bucket: by tables over its other words if that saves comparisons, else by brute force."""
    free = [word for word in range(NUM_WORDS) if word not in used]
    tables = plan_tables(len(hashes), radius, free) if free else []
    keys = [hashes[:, word] & np.uint64(mask) for word, mask in tables]
    num_pairs = sum(int((counts * (counts - 1) // 2).sum()) for counts in map(_bucket_sizes, keys))
    if not tables or 2 * num_pairs > len(hashes) ** 2 // 2:
        everything = np.arange(len(hashes))
        return _compare(hashes, everything, np.array([0]), np.array([len(hashes)]), radius)
    found = [_pairs_by_key(hashes, key, radius, [*used, word]) for key, (word, _) in zip(keys, tables, strict=True)]
    pairs = np.concatenate([np.sort(np.stack(sides, axis=1), axis=1) for sides in found])
    left, right = np.unique(pairs, axis=0).T
    return left, right


def _bucket_sizes(keys: npt.NDArray[np.uint64]) -> Indices:
    return np.unique(keys, return_counts=True)[1]


def find_pairs256(hashes: Hashes256, max_distance: int) -> Pairs:
    """All pairs of unique hashes within `max_distance` bits, as sorted indices; runs in this process."""
    tables = plan_tables(len(hashes), max_distance) if max_distance else []
    none = np.empty(0, np.int64)
    found = [(none, none), *(pairs_of_table256(hashes, tables, table, max_distance) for table in range(len(tables)))]
    one, other = (np.concatenate(side) for side in zip(*found, strict=True))
    left, right = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    return Pairs(left, right, distance256(hashes[left], hashes[right]))


@compiled
def _is_near(hashes: Hashes256, one: int, other: int, radius: int) -> np.bool_:
    distance = np.int64(0)
    for word in range(NUM_WORDS):
        distance += popcount(hashes[one, word] ^ hashes[other, word])
    return distance <= radius


@compiled
def _compare(
    hashes: Hashes256, order: Indices, starts: Indices, stops: Indices, radius: int
) -> tuple[Indices, Indices]:
    """Index pairs within `radius` inside the buckets order[starts[b]:stops[b]]."""
    left, right = np.empty(1024, np.int64), np.empty(1024, np.int64)
    num_found = 0
    for bucket in range(len(starts)):
        for here in range(starts[bucket] + 1, stops[bucket]):
            for there in range(starts[bucket], here):
                if _is_near(hashes, order[here], order[there], radius):
                    if num_found == len(left):
                        left, right = np.concatenate((left, left)), np.concatenate((right, right))
                    left[num_found], right[num_found] = order[there], order[here]
                    num_found += 1
    return left[:num_found].copy(), right[:num_found].copy()
