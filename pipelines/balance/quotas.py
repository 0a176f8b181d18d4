"""How many samples each cluster gives: the target is poured over the tree of clusters, level by level.

All clusters of one parent get the same number, but for those that have fewer samples than that: these give all they
have, and the others fill up (Vo et al., arXiv 2405.15613, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def pour(sizes: Counts, target: int) -> Counts:
    """Whole quotas, quota <= size and as equal as can be, that sum to `target` (or to all there is).

    What equal quotas leave over goes one by one to the first clusters that have more.
    """
    if target >= sizes.sum():
        return sizes.copy()
    low, high = 0, target  # the level: the largest at which the quotas do not sum to more than the target
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= target:
            low = middle
        else:
            high = middle - 1
    quotas = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)[: target - int(quotas.sum())]
    quotas[larger] += 1
    return quotas


def cluster_quotas(counts: Counts, parents: Sequence[npt.NDArray[np.int32]], target: int) -> Counts:
    """Quota of each cluster of the finest level, which holds `counts` samples.

    `parents` are the levels from the finest up: for each cluster its cluster of the level above.
    """
    sizes = [counts]
    for parent in parents:
        num_above = max(int(parent.max(initial=-1)) + 1, 1)
        sizes.append(np.bincount(parent, weights=sizes[-1], minlength=num_above).astype(np.int64))
    quotas = pour(sizes[-1], target)
    for parent, size in zip(reversed(parents), reversed(sizes[:-1]), strict=True):
        order = np.argsort(parent, kind="stable")
        below = np.zeros(len(parent), np.int64)
        edges = np.searchsorted(parent[order], np.arange(len(quotas) + 1))
        for cluster in np.flatnonzero(quotas):
            members = order[edges[cluster] : edges[cluster + 1]]
            below[members] = pour(size[members], int(quotas[cluster]))
        quotas = below
    return quotas
