"""MinHash signatures of captions: the share of 128 equal slots estimates the Jaccard similarity of their 4-grams.

The similarity is that of the sets of character 4-grams (Broder 1997); its standard error at 0.8 is 0.035. A slot keeps
8 bits of its minimum (b-bit MinHash, arXiv 0910.3349): a signature has 128 bytes, and slots of unlike captions are
equal by chance once in 256. Eight consecutive slots are one 64-bit word, a *band*; near-duplicates share a band.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices

Signatures = npt.NDArray[np.uint64]  # [captions, NUM_BANDS]

GRAM = 4  # characters; a short caption has no word 5-grams to compare
NUM_SLOTS = 128
SLOTS_PER_BAND = 8
NUM_BANDS = NUM_SLOTS // SLOTS_PER_BAND

_Words = npt.NDArray[np.uint32]


def _permutations() -> tuple[_Words, _Words]:
    """Odd factors and summands of x -> a x + b modulo 2^32, one pair per slot. Signatures are not kept after a run."""
    generator = np.random.default_rng(128)
    factors = generator.integers(0, 2**32, NUM_SLOTS, dtype=np.uint32) | np.uint32(1)
    return factors, generator.integers(0, 2**32, NUM_SLOTS, dtype=np.uint32)


_FACTORS, _SUMMANDS = _permutations()


def signatures(captions: Sequence[str]) -> Signatures:
    """Signatures of normalised captions. A caption of fewer than 4 characters is one gram."""
    characters = np.frombuffer("".join(captions).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([0, *(len(caption) for caption in captions)])
    return _signatures(characters, ends, _FACTORS, _SUMMANDS)


@compiled
def _signatures(characters: _Words, ends: Indices, factors: _Words, summands: _Words) -> Signatures:
    found = np.zeros((len(ends) - 1, NUM_BANDS), np.uint64)
    smallest = np.empty(NUM_SLOTS, np.uint32)
    for caption in range(len(ends) - 1):
        smallest[:] = np.uint32(0xFFFFFFFF)
        start, stop = ends[caption], ends[caption + 1]
        for first in range(start, max(start + 1, stop - GRAM + 1)):
            gram = _gram(characters, first, min(first + GRAM, stop))
            for slot in range(NUM_SLOTS):
                value = np.uint32(factors[slot] * gram + summands[slot])
                smallest[slot] = min(smallest[slot], value)
        for slot in range(NUM_SLOTS):
            shift = np.uint64(8 * (slot % SLOTS_PER_BAND))
            found[caption, slot // SLOTS_PER_BAND] |= np.uint64(smallest[slot] & np.uint32(0xFF)) << shift
    return found


@compiled
def _gram(characters: _Words, first: int, stop: int) -> np.uint32:
    """32-bit hash of a few characters."""
    mixed = np.uint64(0x9E3779B97F4A7C15)
    for index in range(first, stop):
        mixed = (mixed ^ np.uint64(characters[index])) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    return np.uint32((mixed * np.uint64(0x94D049BB133111EB)) >> np.uint64(32))


@compiled
def num_equal_slots(left: Signatures, right: Signatures) -> npt.NDArray[np.int32]:
    """Number of equal slots, of 128, per pair of signatures."""
    counts = np.zeros(len(left), np.int32)
    for pair in range(len(left)):
        for band in range(NUM_BANDS):
            difference = left[pair, band] ^ right[pair, band]
            for slot in range(SLOTS_PER_BAND):
                counts[pair] += (difference >> np.uint64(8 * slot)) & np.uint64(0xFF) == 0
    return counts


@compiled
def pairs_of_band(words: npt.NDArray[np.uint64], order: Indices) -> tuple[Indices, Indices]:
    """Candidate pairs among captions that share a band; `order` is the stable sort order of `words`.

    Each caption is paired with the first and the previous one of its bucket, so that the cost is linear in the bucket;
    other bands link the remaining pairs.
    """
    left, right = np.empty(2 * len(order), np.int64), np.empty(2 * len(order), np.int64)
    num_pairs, start = 0, 0
    for here in range(1, len(order)):
        if words[order[here]] != words[order[start]]:
            start = here
            continue
        left[num_pairs], right[num_pairs] = order[start], order[here]
        num_pairs += 1
        if here - 1 > start:
            left[num_pairs], right[num_pairs] = order[here - 1], order[here]
            num_pairs += 1
    return left[:num_pairs].copy(), right[:num_pairs].copy()
