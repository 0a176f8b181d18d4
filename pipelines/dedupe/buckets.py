"""Pairs of near hashes inside one table: hashes whose key bits are equal lie in one bucket, and buckets are compared.

A hash is moved so that its key bits come first; sorting the moved values puts each bucket together, and neither an
index nor a second array travels along: a hash is its own name. Popcounts do not mind the order of the bits.

A hot bucket (photographs are skewed, flat images more so) is split by tables over the bits that its key leaves free,
as often as that saves comparisons, so that no bucket is ever worth the square of its size unless its hashes are
really near each other.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.components import Indices

Hashes = npt.NDArray[np.uint64]
Moves = npt.NDArray[np.uint64]  # [blocks, 3]: bits of a block, how far down they go, how far up then

NUM_BITS = 64
ALL_BITS = 2**NUM_BITS - 1
ENTROPY_PER_BIT = 0.85  # hashes of photographs fill buckets less evenly than random bits
SORT_COST, VERIFY_COST = 60.0, 0.35  # ns a hash a table, ns a pair (measured)
HOT_BUCKET = 4096  # hashes; more than 2^11, so that a bucket of any radius has bits left to be split by


def plan_masks(num_hashes: int, max_distance: int, free: int = ALL_BITS) -> list[int]:
    """Key masks of the tables that find every pair within `max_distance` of hashes that differ in `free` bits only.

    The free bits are split in m blocks. Two hashes within r bits agree in at least m - r of them, so they share a
    bucket in one of the C(m, r) tables whose key is a choice of m - r blocks. Wider keys mean smaller buckets and
    more tables: the cheapest m for this many hashes is taken.
    """
    positions = [bit for bit in range(NUM_BITS) if free >> bit & 1]
    choices = range(max_distance + 1, min(len(positions), max_distance + 8) + 1)
    if not choices:
        return [0]  # no bits to split by: one bucket
    num_blocks = min(choices, key=lambda blocks: _cost(num_hashes, max_distance, blocks, len(positions)))
    edges = [len(positions) * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [sum(1 << bit for bit in positions[start:stop]) for start, stop in pairwise(edges)]
    return [sum(chosen) for chosen in combinations(blocks, num_blocks - max_distance)]


def _cost(num_hashes: int, max_distance: int, num_blocks: int, num_free: int) -> float:
    key_bits = num_free * (num_blocks - max_distance) / num_blocks * ENTROPY_PER_BIT
    pairs = num_hashes**2 / 2 / 2**key_bits
    return comb(num_blocks, max_distance) * (SORT_COST * num_hashes + VERIFY_COST * pairs)


def pairs_of_table(values: Hashes, mask: int, max_distance: int, free: int = ALL_BITS) -> tuple[Hashes, Hashes]:
    """Pairs within `max_distance` that agree in all bits of `mask`, each once; `values` are distinct."""
    moved = sorted_by_key(values, mask)
    return _pairs_of_sorted(moved, mask, max_distance, free)


def sorted_by_key(values: Hashes, mask: int) -> Hashes:
    """Hashes with the bits of `mask` moved to the front, sorted: buckets lie together."""
    moved = move_bits(values, moves_of(mask))
    moved.sort()
    return moved


def _pairs_of_sorted(moved: Hashes, mask: int, max_distance: int, free: int) -> tuple[Hashes, Hashes]:
    left, right, hot = _compare(moved, np.uint64(key_shift(mask)), max_distance, HOT_BUCKET)
    back = moves_back(mask)
    lefts, rights = [move_bits(left, back)], [move_bits(right, back)]
    for start, stop in hot.tolist():
        more = _pairs_of_hot(move_bits(moved[start:stop], back), max_distance, free & ~mask)
        lefts.append(more[0])
        rights.append(more[1])
    return np.concatenate(lefts), np.concatenate(rights)


def _pairs_of_hot(values: Hashes, max_distance: int, free: int) -> tuple[Hashes, Hashes]:
    """Pairs of one hot bucket: by tables over its free bits where that saves comparisons, else each with each."""
    masks = plan_masks(len(values), max_distance, free)
    tables = [sorted_by_key(values, mask) for mask in masks]
    num_pairs = [
        num_pairs_in_buckets(moved, np.uint64(key_shift(mask))) for moved, mask in zip(tables, masks, strict=True)
    ]
    if 0 in masks or 2 * sum(num_pairs) > len(values) ** 2 // 2:
        left, right, _ = _compare(values, np.uint64(NUM_BITS), max_distance, len(values))
        return left, right
    lefts, rights = [], []
    for place, (mask, moved) in enumerate(zip(masks, tables, strict=True)):
        left, right = _pairs_of_sorted(moved, mask, max_distance, free)
        new = is_first_table(left ^ right, masks[:place])
        lefts.append(left[new])
        rights.append(right[new])
    return np.concatenate(lefts), np.concatenate(rights)


def is_first_table(differences: Hashes, earlier: list[int]) -> npt.NDArray[np.bool_]:
    """True for pairs that no earlier table has in one bucket: each pair is told once."""
    is_first = np.ones(len(differences), bool)
    for mask in earlier:
        is_first &= (differences & np.uint64(mask)) != 0
    return is_first


def key_shift(mask: int) -> int:
    """How far a moved hash is shifted down to give its key; 64 where there is no key."""
    return NUM_BITS - mask.bit_count()


def moves_of(mask: int) -> Moves:
    """Moves that bring the bits of `mask` to the front and the others behind them, each in their order."""
    runs = [*_runs(mask), *_runs(ALL_BITS & ~mask)]
    moves, top = [], NUM_BITS
    for start, stop in runs:
        top -= stop - start
        moves.append(((1 << stop) - (1 << start), start, top))
    return np.array(moves, np.uint64)


def moves_back(mask: int) -> Moves:
    """The inverse of `moves_of`."""
    moves = [(bits >> down << up, up, down) for bits, down, up in moves_of(mask).tolist()]
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
    for start in range(0, len(values), 2048):  # stays in the cache while block after block is added
        stop = min(start + 2048, len(values))
        for block in range(len(moves)):
            bits, down, up = moves[block, 0], moves[block, 1], moves[block, 2]
            for place in range(start, stop):
                moved[place] |= ((values[place] & bits) >> down) << up
    return moved


@compiled
def popcount(bits: np.uint64) -> np.int64:
    """Number of ones; compilers know this form and use the processor's own instruction."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def count_near(values: Hashes, start: int, stop: int, value: np.uint64, max_distance: int) -> np.int64:
    """How many of values[start:stop] lie within `max_distance`; a loop without branches, for wide registers."""
    num_near = np.int64(0)
    for place in range(start, stop):
        num_near += popcount(values[place] ^ value) <= max_distance
    return num_near


@compiled
def bucket_end(moved: Hashes, start: int, shift: np.uint64) -> int:
    """Where the bucket that begins at `start` ends."""
    stop = start + 1
    if shift == np.uint64(64):
        return len(moved)
    key = moved[start] >> shift
    while stop < len(moved) and moved[stop] >> shift == key:
        stop += 1
    return stop


@compiled
def num_pairs_in_buckets(moved: Hashes, shift: np.uint64) -> int:
    """Comparisons that the buckets of sorted, moved hashes cost."""
    num_pairs = 0
    start = 0
    while start < len(moved):
        stop = bucket_end(moved, start, shift)
        num_pairs += (stop - start) * (stop - start - 1) // 2
        start = stop
    return num_pairs


@compiled
def _compare(moved: Hashes, shift: np.uint64, max_distance: int, hot: int) -> tuple[Hashes, Hashes, Indices]:
    """Near pairs inside the buckets of sorted, moved hashes; buckets of more than `hot` are named, not compared."""
    left, right = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    ranges = np.empty((len(moved) // hot + 1, 2), np.int64)
    num_found, num_hot = 0, 0
    start = 0
    while start < len(moved):
        stop = bucket_end(moved, start, shift)
        if stop - start > hot:
            ranges[num_hot, 0], ranges[num_hot, 1] = start, stop
            num_hot += 1
            start = stop
        for here in range(start + 1, stop):
            num_near = count_near(moved, start, here, moved[here], max_distance)
            if num_near == 0:
                continue
            while num_found + num_near > len(left):
                left, right = np.concatenate((left, left)), np.concatenate((right, right))
            for there in range(start, here):
                if popcount(moved[there] ^ moved[here]) <= max_distance:
                    left[num_found], right[num_found] = moved[there], moved[here]
                    num_found += 1
        start = stop
    return left[:num_found].copy(), right[:num_found].copy(), ranges[:num_hot].copy()
