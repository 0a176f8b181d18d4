"""Semantic duplicates (SemDeDup, arXiv 2303.09540): images with near features in one k-means cluster.

Two images are near if the cosine of their features is above the threshold and they are in the same k-means cluster. The
policy decides which images are kept:

- `greedy`: in keep order, an image is dropped if it is near a *kept* one.
- `official`: from the outside of the cluster inwards, an image is dropped if any earlier image is near, kept or not (as
  the paper's code does: of a chain A - B - C, both B and C are dropped).
- `components`: the best image of each connected component is kept, chains included.

Memory is bounded: similarities are computed in blocks and not stored. The tasks: semantic_rounds.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.kmeans import Features
from pairloom.pipelines.algorithms.union_find import Indices, find, unite

BLOCK = 1024  # images per block of similarities


def decide_cluster(
    features: Features, centroid: npt.NDArray[np.float32], threshold: float, policy: str, num_earlier: int = 0
) -> Indices:
    """Per image of a cluster, in keep order: index of the image kept instead; -1 if it is kept.

    The first `num_earlier` images belong to earlier data sets and come first in every policy.
    """
    if policy != "official":
        return _scan_cluster(features, threshold, policy == "components")
    is_own = np.arange(len(features)) >= num_earlier
    order = np.lexsort((features @ centroid, is_own))  # farthest from the centroid first
    instead = _earlier_and_nearest(features[order], threshold)
    for index in range(len(order)):  # earlier images are kept, or already name a kept one
        if instead[index] >= 0 and instead[instead[index]] >= 0:
            instead[index] = instead[instead[index]]
    kept_instead = np.full(len(order), -1)
    kept_instead[order] = np.where(instead >= 0, order[instead], -1)
    return kept_instead


def _earlier_and_nearest(features: Features, threshold: float) -> Indices:
    """Per image: the nearest earlier image above the threshold, or -1."""
    nearest_earlier = np.full(len(features), -1)
    for start, stop in _blocks(len(features)):
        similarity = features[start:stop] @ features[:stop].T
        similarity[np.arange(stop)[None, :] >= np.arange(start, stop)[:, None]] = -2
        best = similarity.argmax(axis=1)
        is_near = similarity[np.arange(stop - start), best] > threshold
        nearest_earlier[start:stop] = np.where(is_near, best, -1)
    return nearest_earlier


def _scan_cluster(features: Features, threshold: float, chains: bool) -> Indices:
    """The policies greedy (compare with kept images) and components (`chains`: one kept image per component)."""
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
    roots = np.array([find(roots, index) for index in range(len(roots))])
    return np.where(roots == np.arange(len(roots)), -1, roots)


@compiled
def _unite_near(roots: Indices, similarity: Features, others: Indices, start: int, threshold: float) -> None:
    for row in range(len(similarity)):
        for column in range(len(others)):
            if others[column] < start + row and similarity[row, column] > threshold:
                unite(roots, start + row, others[column])


@compiled
def _greedy_block(kept_instead: Indices, similarity: Features, others: Indices, start: int, threshold: float) -> None:
    """Scan one block in keep order; of the near kept images, the nearest is named."""
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
