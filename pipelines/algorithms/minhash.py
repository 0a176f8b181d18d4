"""MinHash signatures of captions: how many of 128 places two signatures share tells how alike their 4-grams are.

The expected share is the Jaccard similarity of the captions' sets of character 4-grams (Broder 1997); its standard
error at 0.8 is 0.035. Each place keeps 8 bits of its minimum (b-bit MinHash, arXiv 0910.3349): 128 bytes a signature,
and unlike captions agree in a place by chance once in 256. Eight places in a row are one 64-bit word: a *band*, by
whose equality near-duplicates are found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices

Signatures = npt.NDArray[np.uint64]  # [captions, NUM_BANDS]

GRAM = 4  # characters: a word 5-gram would give a short caption nothing to compare
NUM_PLACES = 128
PLACES_PER_BAND = 8
NUM_BANDS = NUM_PLACES // PLACES_PER_BAND

_Words = npt.NDArray[np.uint32]


def _permutations() -> tuple[_Words, _Words]:
    """Factors (odd) and summands of x -> a x + b modulo 2^32, one a place. Signatures last no longer than a run."""
    generator = np.random.default_rng(128)
    factors = generator.integers(0, 2**32, NUM_PLACES, dtype=np.uint32) | np.uint32(1)
    return factors, generator.integers(0, 2**32, NUM_PLACES, dtype=np.uint32)


_FACTORS, _SUMMANDS = _permutations()


def signatures(captions: Sequence[str]) -> Signatures:
    """Signatures of captions, which the caller has normalised. A caption of fewer than 4 characters is one gram."""
    characters = np.frombuffer("".join(captions).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([0, *(len(caption) for caption in captions)])
    return _signatures(characters, ends, _FACTORS, _SUMMANDS)


@compiled
def _signatures(characters: _Words, ends: Indices, factors: _Words, summands: _Words) -> Signatures:
    found = np.zeros((len(ends) - 1, NUM_BANDS), np.uint64)
    smallest = np.empty(NUM_PLACES, np.uint32)
    for caption in range(len(ends) - 1):
        smallest[:] = np.uint32(0xFFFFFFFF)
        start, stop = ends[caption], ends[caption + 1]
        for first in range(start, max(start + 1, stop - GRAM + 1)):
            gram = _gram(characters, first, min(first + GRAM, stop))
            for place in range(NUM_PLACES):
                value = np.uint32(factors[place] * gram + summands[place])
                smallest[place] = min(smallest[place], value)
        for place in range(NUM_PLACES):
            shift = np.uint64(8 * (place % PLACES_PER_BAND))
            found[caption, place // PLACES_PER_BAND] |= np.uint64(smallest[place] & np.uint32(0xFF)) << shift
    return found


@compiled
def _gram(characters: _Words, first: int, stop: int) -> np.uint32:
    """32 well mixed bits of a few characters."""
    mixed = np.uint64(0x9E3779B97F4A7C15)
    for place in range(first, stop):
        mixed = (mixed ^ np.uint64(characters[place])) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    return np.uint32((mixed * np.uint64(0x94D049BB133111EB)) >> np.uint64(32))


@compiled
def num_equal_places(left: Signatures, right: Signatures) -> npt.NDArray[np.int32]:
    """How many of the 128 places each pair of signatures shares."""
    counts = np.zeros(len(left), np.int32)
    for pair in range(len(left)):
        for band in range(NUM_BANDS):
            difference = left[pair, band] ^ right[pair, band]
            for place in range(PLACES_PER_BAND):
                counts[pair] += (difference >> np.uint64(8 * place)) & np.uint64(0xFF) == 0
    return counts


@compiled
def pairs_of_band(words: npt.NDArray[np.uint64], order: Indices) -> tuple[Indices, Indices]:
    """Pairs worth a look among captions that share a band; `order` sorts `words`, equal ones by place.

    Each caption is paired with the first and the previous one of its band: a bucket never costs its square, and what
    one band leaves apart another one joins.
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
