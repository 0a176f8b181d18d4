"""MetaCLIP's draw (arXiv 2309.16671, algorithm 1): keep fewer samples of frequent entries.

An entry e keeps each of its samples with probability min(1, t / count_e); a sample is kept if one of its entries keeps
it: p = 1 - prod(1 - min(1, t / count_e)). A sample without an entry is dropped. The decision is a function of (seed,
uid, p) alone, so that shards, order and workers do not change it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Counts = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


def count_entries(matches: pa.ListArray, rows: npt.NDArray[np.bool_], num_entries: int) -> Counts:
    """Number of chosen rows per entry. `matches` has a list of entry numbers per row."""
    offsets, entries = _flattened(matches)
    per_row = np.diff(offsets)
    return np.bincount(entries[np.repeat(rows, per_row)], minlength=num_entries)


def keep_probabilities(matches: pa.ListArray, counts: Counts, t: int) -> Probabilities:
    """The probability to keep each row."""
    offsets, entries = _flattened(matches)
    misses = 1.0 - np.minimum(1.0, t / np.maximum(counts, 1)[entries])
    missed = np.ones(len(matches))
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        missed[filled] = np.multiply.reduceat(misses, offsets[filled])
    missed[np.diff(offsets) == 0] = 1.0
    return 1.0 - missed


def _flattened(matches: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets [rows + 1] and the entries of all rows; a null row has no entries."""
    lists = matches.combine_chunks() if isinstance(matches, pa.ChunkedArray) else matches
    lengths = np.asarray(lists.value_lengths().fill_null(0), np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return offsets, np.asarray(lists.flatten(), np.int64)
