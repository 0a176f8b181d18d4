"""Semantic duplicates (SemDeDup, arXiv 2303.09540): images whose features agree, compared inside k-means clusters.

Two images are near where the cosine of their features is above the threshold and k-means puts them in one cluster.
Which of them stay is the policy's:

- `greedy`: images are walked in keep order; one is dropped when a *kept* one is near.
- `official`: images are walked from the outside of the cluster in; one is dropped when any earlier one is near, be it
  kept or not (as the paper's code does: in a chain A - B - C both B and C go).
- `components`: the best image of everything that is linked, chains included, stays.

Memory is bounded: similarities are computed in blocks and never kept. The rounds of tasks: `semantic_rounds`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.kmeans import Features
from pairloom.pipelines.algorithms.union_find import Indices, find, unite

BLOCK = 1024  # images compared at once


def decide_cluster(
    features: Features, centroid: npt.NDArray[np.float32], threshold: float, policy: str, num_earlier: int = 0
) -> Indices:
    """For each image of a cluster, in keep order, which one is kept instead; -1 where it is kept.

    The first `num_earlier` ones belong to earlier data sets and come first in any policy.
    """
    if policy != "official":
        return _walk_cluster(features, threshold, policy == "components")
    is_own = np.arange(len(features)) >= num_earlier
    order = np.lexsort((features @ centroid, is_own))  # the farthest first
    instead = _earlier_and_nearest(features[order], threshold)
    for place in range(len(order)):  # earlier ones are kept, or name a kept one already
        if instead[place] >= 0 and instead[instead[place]] >= 0:
            instead[place] = instead[instead[place]]
    kept_instead = np.full(len(order), -1)
    kept_instead[order] = np.where(instead >= 0, order[instead], -1)
    return kept_instead


def _earlier_and_nearest(features: Features, threshold: float) -> Indices:
    """For each image the nearest earlier one above the threshold, -1 where there is none."""
    nearest_earlier = np.full(len(features), -1)
    for start, stop in _blocks(len(features)):
        similarity = features[start:stop] @ features[:stop].T
        similarity[np.arange(stop)[None, :] >= np.arange(start, stop)[:, None]] = -2
        best = similarity.argmax(axis=1)
        is_near = similarity[np.arange(stop - start), best] > threshold
        nearest_earlier[start:stop] = np.where(is_near, best, -1)
    return nearest_earlier


def _walk_cluster(features: Features, threshold: float, chains: bool) -> Indices:
    """Greedy (compare with kept ones) or components (`chains`: everything that is linked has one kept image)."""
    roots = np.arange(len(features))
    kept_instead = np.full(len(features), -1)
    earlier = np.empty(0, np.int64)
    for start, stop in _blocks(len(features)):
        others = np.concatenate([earlier, np.arange(start, stop)])
        similarity = features[start:stop] @ features[others].T
        if chains:
            _unite_near(roots, similarity, others, start, threshold)
            earlier = others
        else:
            _greedy_block(kept_instead, similarity, others, start, threshold)
            earlier = np.flatnonzero(kept_instead[:stop] < 0)
    if not chains:
        return kept_instead
    roots = np.array([find(roots, place) for place in range(len(roots))])
    return np.where(roots == np.arange(len(roots)), -1, roots)


@compiled
def _unite_near(roots: Indices, similarity: Features, others: Indices, start: int, threshold: float) -> None:
    for row in range(len(similarity)):
        for column in range(len(others)):
            if others[column] < start + row and similarity[row, column] > threshold:
                unite(roots, start + row, others[column])


@compiled
def _greedy_block(kept_instead: Indices, similarity: Features, others: Indices, start: int, threshold: float) -> None:
    """Walk one block in keep order; of the kept images that are near, the nearest is named."""
    for row in range(len(similarity)):
        best = np.float32(threshold)
        for column in range(len(others)):
            other = others[column]
            if other >= start + row:
                break
            if similarity[row, column] > best and kept_instead[other] < 0:
                best = similarity[row, column]
                kept_instead[start + row] = other


def _blocks(num: int) -> Sequence[tuple[int, int]]:
    return [(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK)]
