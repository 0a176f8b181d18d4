"""Quotas of samples per cluster: the target is divided over the tree of clusters, level by level.

All clusters of one parent get the same quota; smaller clusters give all their samples, and the others share the rest
(Vo et al., arXiv 2405.15613, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def water_fill(sizes: Counts, target: int) -> Counts:
    """Integer quotas with quota <= size, as equal as possible, that sum to min(target, sum of sizes).

    The remainder of equal quotas goes, one each, to the first clusters with more samples.
    """
    if target >= sizes.sum():
        return sizes.copy()
    low, high = 0, target  # bounds of the level: the largest for which the quotas sum to at most the target
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
    """Quota per cluster of the finest level; `counts` are its samples per cluster.

    `parents`: per level, from the finest up, the parent cluster of each cluster.
    """
    sizes = [counts]
    for parent in parents:
        num_above = max(int(parent.max(initial=-1)) + 1, 1)
        sizes.append(np.bincount(parent, weights=sizes[-1], minlength=num_above).astype(np.int64))
    quotas = water_fill(sizes[-1], target)
    for parent, size in zip(reversed(parents), reversed(sizes[:-1]), strict=True):
        order = np.argsort(parent, kind="stable")
        below = np.zeros(len(parent), np.int64)
        edges = np.searchsorted(parent[order], np.arange(len(quotas) + 1))
        for cluster in np.flatnonzero(quotas):
            members = order[edges[cluster] : edges[cluster + 1]]
            below[members] = water_fill(size[members], int(quotas[cluster]))
        quotas = below
    return quotas
