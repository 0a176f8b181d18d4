"""Which samples stay when common things are thinned out: MetaCLIP's draw (arXiv 2309.16671, algorithm 1).

An entry that more than t samples match is rare enough with probability t / count; a sample stays when one of its
entries lets it. In one number: p = 1 - prod(1 - min(1, t / count_e)) over its entries e; no entry, no place. Whether a
sample stays depends on (seed, uid, p) alone, so shards, order and workers change nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Counts = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


def count_entries(matches: pa.ListArray, rows: npt.NDArray[np.bool_], num_entries: int) -> Counts:
    """How many of the chosen rows match each entry. `matches` has a list of entry numbers a row."""
    offsets, entries = _parts(matches)
    per_row = np.diff(offsets)
    return np.bincount(entries[np.repeat(rows, per_row)], minlength=num_entries)


def keep_probabilities(matches: pa.ListArray, counts: Counts, t: int) -> Probabilities:
    """The probability of each row to stay."""
    offsets, entries = _parts(matches)
    misses = 1.0 - np.minimum(1.0, t / np.maximum(counts, 1)[entries])
    missed = np.ones(len(matches))
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        missed[filled] = np.multiply.reduceat(misses, offsets[filled])
    missed[np.diff(offsets) == 0] = 1.0
    return 1.0 - missed


def _parts(matches: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets ([rows + 1], from 0) and the entries of all rows; a null row has none."""
    lists = matches.combine_chunks() if isinstance(matches, pa.ChunkedArray) else matches
    lengths = np.asarray(lists.value_lengths().fill_null(0), np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return offsets, np.asarray(lists.flatten(), np.int64)
