"""Entries for balancing: matching captions with them, and making them from captions.

Matching is MetaCLIP's (arXiv 2309.16671; `substr_matching.py` of its repository): punctuation is padded with spaces,
and an entry matches if " entry " is part of " caption ", case-sensitive. An entry counts once per caption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import ahocorasick_rs
import numpy as np
import numpy.typing as npt

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

PADDED = (",", ".", ";", ":", "?", "!", "`")
SPACES = str.maketrans("\t\n\r", "   ")
BATCH = 1000  # captions per call; their text fits into the caches

Indices = npt.NDArray[np.int64]


def spaced(caption: str) -> str:
    """The caption in the form for matching: padded punctuation, spaces at both ends."""
    for mark in PADDED:
        if mark in caption:
            caption = caption.replace(mark, f" {mark} ")
    return f" {caption.translate(SPACES)} "


def load_entries(url: str) -> list[str]:
    """Entries of a text file, one per line, in order, without empty lines and repeats. Raises InputError."""
    try:
        lines = storage.read_text(url).splitlines()
    except FileNotFoundError as error:
        raise InputError(f"balance.entries: {url}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"balance.entries: {url}: not UTF-8 text; convert it") from error
    entries = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not entries:
        raise InputError(f"balance.entries: {url}: is empty; write one entry per line")
    return entries


class Matcher:
    """Finds all entries of captions in one pass (Aho-Corasick)."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._automaton: Any = ahocorasick_rs.BytesAhoCorasick([f" {entry} ".encode() for entry in entries])
        self._num_entries = len(entries)

    def match(self, captions: Sequence[str]) -> tuple[Indices, Indices]:
        """Unique (row, entry) of every match, sorted, as two arrays."""
        matches = [self._match_batch(captions, first) for first in range(0, len(captions), BATCH)]
        pairs = np.concatenate(matches) if matches else np.zeros(0, np.int64)
        return pairs // self._num_entries, pairs % self._num_entries

    def _match_batch(self, captions: Sequence[str], first: int) -> Indices:
        """Matches as row * num_entries + entry. Line ends separate the captions, which contain none."""
        texts = [spaced(caption).encode("utf-8", "replace") for caption in captions[first : first + BATCH]]
        ends = np.cumsum([len(text) + 1 for text in texts])
        found = self._automaton.find_matches_as_indexes(b"\n".join(texts), overlapping=True)
        if not found:
            return np.zeros(0, np.int64)
        matches = np.array(found, np.int64)  # entry, first byte, last byte
        rows = first + np.searchsorted(ends, matches[:, 1], side="right")
        return np.unique(rows * self._num_entries + matches[:, 0])


@lru_cache(maxsize=1)
def matcher_of(url: str) -> Matcher:
    """The matcher of an entry list, built once per process (2 s for half a million entries)."""
    return Matcher(load_entries(url))


def count_words(captions: Iterable[str]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Counts of words and of pairs of neighbouring words; punctuation separates neighbours."""
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for caption in captions:
        tokens = spaced(caption).split()
        words.update(token for token in tokens if is_word(token))
        pairs.update(pair for pair in pairwise(tokens) if is_word(pair[0]) and is_word(pair[1]))
    return words, pairs


def is_word(token: str) -> bool:
    """Whether a token has a letter or digit."""
    return any(character.isalnum() for character in token)


def choose_entries(
    words: Counter[str], pairs: Counter[tuple[str, str]], min_count: int, min_information: float
) -> list[str]:
    """Words and pairs that occur `min_count` times; pairs also need a high pointwise mutual information.

    MetaCLIP's list has words of WordNet and Wikipedia, bigrams of high mutual information and titles; here words and
    pairs come from the captions to balance. `min_information` is in bits. Sorted.
    """
    total = sum(words.values())
    chosen = [word for word, count in words.items() if count >= min_count]
    for (first, second), count in pairs.items():
        if count >= min_count and math.log2(count * total / (words[first] * words[second])) >= min_information:
            chosen.append(f"{first} {second}")
    return sorted(chosen)
