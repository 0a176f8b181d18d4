"""Pairs of 64-bit hashes within a Hamming distance: hashes with equal key bits share a bucket; buckets are compared.

Two hashes within r bits agree in at least m - r of m blocks of their bits, so they share a bucket in one of the C(m, r)
tables whose key is a choice of m - r blocks. Tables whose keys begin with the same blocks make a *group*: the hashes
are sorted into buckets by these first blocks once, in one pass over memory. A bucket fits into a processor's cache;
there each table of the group links hashes of one key in chains.

A hot bucket (hashes of photographs are skewed, those of flat images more so) is searched by groups over the bits
outside its key in which its hashes differ. Its cost is quadratic only if most of its hashes are near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted

Hashes = npt.NDArray[np.uint64]
Moves = npt.NDArray[np.uint64]  # [blocks, 3]: mask of a block, shift down, then shift up

NUM_BITS = 64
ALL_BITS = 2**NUM_BITS - 1
ENTROPY_PER_BIT = 0.85  # hashes of photographs fill buckets less evenly than random bits
DEAL_COST, CHAIN_COST, VERIFY_COST = 20.0, 6.0, 1.5  # measured ns per hash and group, hash and table, pair
BUCKET_COST = 30.0  # ns per bucket and group
HOT_BUCKET = 32_767  # hashes: a larger bucket does not fit into the cache, nor its indices into int16
COMPARED_AT_ONCE = 1 << 16  # hashes for which brute force is acceptable where tables split them badly
MAX_DEAL_BITS = 24  # bits of a group's key: the array of bucket counts has 128 MB
CHAIN_BITS = 14  # the heads of chains fit into the L1 cache


@dataclass(frozen=True)
class Group:
    """Tables whose keys begin with the same blocks, as masks of bits."""

    first: int  # the blocks that they share
    others: tuple[int, ...]  # per table: the other blocks of its key
    earlier: tuple[int, ...]  # pairs that agree in one of these blocks are found by another group


def plan_groups(num_hashes: int, max_distance: int, free: int = ALL_BITS) -> list[Group]:
    """The cheapest groups that find every pair within `max_distance`, for hashes that differ in `free` bits only.

    Wider keys give smaller buckets and more tables. Empty if there are too few bits to split by.
    """
    positions = [bit for bit in range(NUM_BITS) if free >> bit & 1]
    choices = [
        (num_blocks, num_first)
        for num_blocks in range(max_distance + 1, min(len(positions), max_distance + 8) + 1)
        for num_first in range(1, num_blocks - max_distance + 1)
    ]
    if not choices:
        return []
    num_blocks, num_first = min(choices, key=lambda choice: _cost(num_hashes, max_distance, choice, len(positions)))
    edges = [len(positions) * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [sum(1 << bit for bit in positions[start:stop]) for start, stop in pairwise(edges)]
    keys = combinations(range(num_blocks), num_blocks - max_distance)
    groups = []
    for first, of_group in groupby(keys, key=lambda key: key[:num_first]):
        others = tuple(sum(blocks[block] for block in key[num_first:]) for key in of_group)
        earlier = tuple(blocks[block] for block in range(first[-1]) if block not in first)
        groups.append(Group(sum(blocks[block] for block in first), others, earlier))
    return groups


def _cost(num_hashes: int, max_distance: int, choice: tuple[int, int], num_free: int) -> tuple[bool, float]:
    """(Whether typical buckets would be hot or too many to count, estimated nanoseconds)."""
    num_blocks, num_first = choice
    block_bits = num_free / num_blocks
    in_bucket = num_hashes / 2 ** (num_first * block_bits * ENTROPY_PER_BIT)
    key_bits = (num_blocks - max_distance) * block_bits * ENTROPY_PER_BIT
    tables, groups = comb(num_blocks, max_distance), comb(max_distance + num_first, num_first)
    linear = num_hashes * (groups * DEAL_COST + tables * CHAIN_COST) + groups * BUCKET_COST * 2.0 ** (
        num_first * block_bits
    )
    is_bad = in_bucket > 0.75 * HOT_BUCKET or num_first * block_bits > MAX_DEAL_BITS
    return is_bad, linear + tables * VERIFY_COST * num_hashes**2 / 2 / 2**key_bits


def pairs_of_group(values: Hashes, group: Group, max_distance: int) -> tuple[Hashes, Hashes]:
    """The pairs within `max_distance` that belong to this group, each once. Repeated values count once."""
    shift = np.uint64(key_shift(group.first))
    keys = move_bits(values, moves_of(group.first)) >> shift
    dealt, edges = _deal(values, keys, group.first.bit_count())
    masks, earlier = np.array(group.others, np.uint64), np.array(group.earlier, np.uint64)
    left, right, hot = _search_buckets(dealt, edges, masks, earlier, max_distance)
    lefts, rights = [left], [right]
    for start, stop in hot.tolist():
        one, other = pairs_of_hot(unique_sorted(dealt[start:stop]), max_distance)
        new = _differ_in_all(one ^ other, group.earlier)
        lefts.append(one[new])
        rights.append(other[new])
    return np.concatenate(lefts), np.concatenate(rights)


def pairs_of_hot(values: Hashes, max_distance: int) -> tuple[Hashes, Hashes]:
    """Pairs of one hot bucket (unique values): by groups over the bits that vary, or by brute force."""
    varying = int(np.bitwise_or.reduce(values) ^ np.bitwise_and.reduce(values)) if len(values) else 0
    groups = plan_groups(len(values), max_distance, varying)
    if not groups or (len(values) <= COMPARED_AT_ONCE and not _is_split(values, groups)):
        return _compare(values, max_distance)
    found = [pairs_of_group(values, group, max_distance) for group in groups]
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    return left, right


def _is_split(values: Hashes, groups: Sequence[Group]) -> bool:
    """Whether the groups' buckets contain less than half of all pairs."""
    num_pairs = 0.0
    for group in groups:
        _, sizes = np.unique(values & np.uint64(group.first), return_counts=True)
        num_pairs += float((sizes * (sizes - 1.0)).sum())
    return num_pairs < len(values) ** 2 / 2


def _differ_in_all(differences: Hashes, blocks: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether each pair differs in all of the blocks."""
    differ = np.ones(len(differences), bool)
    for block in blocks:
        differ &= (differences & np.uint64(block)) != 0
    return differ


def key_shift(mask: int) -> int:
    """Shift in bits that turns a moved hash into its key; 64 if there is no key."""
    return NUM_BITS - mask.bit_count()


def moves_of(mask: int) -> Moves:
    """Moves that bring the bits of `mask` to the top and the other bits below, each in their order."""
    runs = [*_runs(mask), *_runs(ALL_BITS & ~mask)]
    moves, top = [], NUM_BITS
    for start, stop in runs:
        top -= stop - start
        moves.append(((1 << stop) - (1 << start), start, top))
    return np.array(moves, np.uint64)


def _runs(mask: int) -> list[tuple[int, int]]:
    """Runs of ones, the highest first, as (lowest bit, bit above the highest)."""
    padded = [0, *(mask >> bit & 1 for bit in range(NUM_BITS)), 0]
    edges = [bit for bit in range(NUM_BITS + 1) if padded[bit] != padded[bit + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))[::-1]


@compiled
def move_bits(values: Hashes, moves: Moves) -> Hashes:
    """Each value with its blocks of bits moved."""
    moved = np.zeros(len(values), np.uint64)
    for start in range(0, len(values), 2048):  # a chunk stays in the cache over all blocks
        stop = min(start + 2048, len(values))
        for block in range(len(moves)):
            bits, down, up = moves[block, 0], moves[block, 1], moves[block, 2]
            for index in range(start, stop):
                moved[index] |= ((values[index] & bits) >> down) << up
    return moved


@compiled
def popcount(bits: np.uint64) -> np.int64:
    """Number of set bits; compilers turn this form into one instruction."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _deal(values: Hashes, keys: Hashes, num_bits: int) -> tuple[Hashes, Indices]:
    """Values stably sorted by key (counting sort), and the start of each key."""
    edges = np.zeros((1 << num_bits) + 1, np.int64)
    for key in keys:
        edges[np.int64(key) + 1] += 1
    for key in range(1 << num_bits):
        edges[key + 1] += edges[key]
    offsets = edges[:-1].copy()
    dealt = np.empty(len(values), np.uint64)
    for index in range(len(values)):
        key = np.int64(keys[index])
        dealt[offsets[key]] = values[index]
        offsets[key] += 1
    return dealt, edges


@compiled
def _chain_of(value: np.uint64) -> np.int64:
    """The chain of a key."""
    return np.int64((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(NUM_BITS - CHAIN_BITS))


@compiled
def _unique(bucket: Hashes, heads: npt.NDArray[np.int16], nexts: npt.NDArray[np.int16]) -> int:
    """Move the unique values of a bucket to its front; returns their number."""
    num = 0
    for index in range(len(bucket)):
        value = bucket[index]
        chain = _chain_of(value)
        other = heads[chain]
        while other >= 0 and bucket[other] != value:
            other = nexts[other]
        if other < 0:
            bucket[num], nexts[num], heads[chain] = value, heads[chain], num
            num += 1
    for index in range(num):
        heads[_chain_of(bucket[index])] = -1
    return num


@compiled
def _search_buckets(
    dealt: Hashes, edges: Indices, masks: Hashes, earlier: Hashes, max_distance: int
) -> tuple[Hashes, Hashes, Indices]:
    """Pairs inside the buckets, reported by the first table that links them, and the ranges of hot buckets."""
    left, right = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    hot = np.empty((len(dealt) // HOT_BUCKET + 1, 2), np.int64)
    heads, nexts = np.full(1 << CHAIN_BITS, -1, np.int16), np.empty(HOT_BUCKET, np.int16)
    num_found, num_hot = 0, 0
    for key in range(len(edges) - 1):
        if edges[key + 1] - edges[key] < 2:
            continue
        if edges[key + 1] - edges[key] > HOT_BUCKET:
            hot[num_hot, 0], hot[num_hot, 1] = edges[key], edges[key + 1]
            num_hot += 1
            continue
        bucket = dealt[edges[key] : edges[key + 1]]
        bucket = bucket[: _unique(bucket, heads, nexts)]
        for table in range(len(masks)):
            mask = masks[table]
            for index in range(len(bucket)):
                value = bucket[index]
                chain = _chain_of(value & mask)
                other = heads[chain]
                nexts[index], heads[chain] = other, index
                while other >= 0:
                    difference = bucket[other] ^ value
                    other_value = bucket[other]
                    other = nexts[other]
                    if popcount(difference) > max_distance or not _is_new(difference, table, masks, earlier):
                        continue
                    if num_found == len(left):
                        left, right = np.concatenate((left, left)), np.concatenate((right, right))
                    left[num_found], right[num_found] = other_value, value
                    num_found += 1
            for index in range(len(bucket)):
                heads[_chain_of(bucket[index] & mask)] = -1
    return left[:num_found].copy(), right[:num_found].copy(), hot[:num_hot].copy()


@compiled
def _is_new(difference: np.uint64, table: int, masks: Hashes, earlier: Hashes) -> bool:
    """Whether this table is the first with the pair in one bucket, so that each pair is reported once."""
    if difference & masks[table] != 0:
        return False  # another key in the same chain
    for index in range(table):
        if difference & masks[index] == 0:
            return False
    for block in earlier:  # noqa: SIM110 - numba has no all()
        if difference & block == 0:
            return False
    return True


@compiled
def _compare(values: Hashes, max_distance: int) -> tuple[Hashes, Hashes]:
    """Pairs of unique values within `max_distance`, by brute force."""
    left, right = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    num_found = 0
    for here in range(1, len(values)):
        num_near = count_near(values, here, values[here], max_distance)
        if num_near == 0:
            continue
        while num_found + num_near > len(left):
            left, right = np.concatenate((left, left)), np.concatenate((right, right))
        for there in range(here):
            if popcount(values[there] ^ values[here]) <= max_distance:
                left[num_found], right[num_found] = values[there], values[here]
                num_found += 1
    return left[:num_found].copy(), right[:num_found].copy()


@compiled
def count_near(values: Hashes, num: int, value: np.uint64, max_distance: int) -> np.int64:
    """Number of the first `num` values within `max_distance`; without branches, so that it is vectorised."""
    num_near = np.int64(0)
    for index in range(num):
        num_near += popcount(values[index] ^ value) <= max_distance
    return num_near
