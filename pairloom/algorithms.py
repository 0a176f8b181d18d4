"""Algorithms of the pipelines that are useful by themselves: functions of numpy arrays, without files or Ray.

Shapes: N hashes, captions or rows, D features, K clusters, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms import hamming_pairs as _hamming
from pairloom.pipelines.algorithms import kmeans as _kmeans
from pairloom.pipelines.algorithms import minhash as _minhash
from pairloom.pipelines.algorithms.captions import normalise_caption
from pairloom.pipelines.algorithms.union_find import connect

__all__ = ["connected_components", "hamming_pairs", "kmeans", "minhash", "minhash_similarity", "nearest_centroids"]


def hamming_pairs(
    hashes: npt.ArrayLike, max_distance: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All pairs of 64-bit hashes [N] within `max_distance` bits, none missed: left [P], right [P], distance [P].

    Indices are of the input, left < right. Equal hashes are pairs at distance 0. Time grows nearly linearly with N for
    small radii (blocks of bits, as in Norouzi et al., arXiv 1307.2982).
    """
    unique, inverse, counts = np.unique(np.asarray(hashes, np.uint64), return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    members = np.split(order, np.cumsum(counts)[:-1]) if len(unique) else []
    found = _hamming.find_pairs(unique, max_distance)
    pairs = [(a, b, 0) for rows in members if len(rows) > 1 for a, b in combinations(rows.tolist(), 2)]
    for left, right, distance in zip(found.left, found.right, found.distance, strict=True):
        both = product(members[left].tolist(), members[right].tolist())
        pairs += [(min(pair), max(pair), int(distance)) for pair in both]
    columns = np.array(sorted(pairs), np.int64).reshape(-1, 3).T
    return columns[0], columns[1], columns[2]


def kmeans(features: npt.ArrayLike, num_clusters: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Centroids [K, D] of unit length by spherical k-means (ten iterations of Lloyd) over features [N, D]."""
    rows = _kmeans.normalised(np.asarray(features))
    shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
    return _kmeans.train(shuffled, min(num_clusters, len(rows)), on_ray=False)


def nearest_centroids(features: npt.ArrayLike, centroids: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """The index of the nearest centroid [K, D] by cosine for each row of features [N, D]: [N]."""
    return _kmeans.nearest(_kmeans.normalised(np.asarray(features)), _kmeans.normalised(np.asarray(centroids)))


def minhash(captions: Sequence[str]) -> npt.NDArray[np.uint64]:
    """MinHash signatures [N, 16] of the character 4-grams of captions, without case, width and repeated spaces.

    Each holds 128 minima, of 8 bits each (b-bit MinHash, Li and König, WWW 2010).
    """
    return _minhash.signatures([normalise_caption(caption) for caption in captions])


def minhash_similarity(left: npt.ArrayLike, right: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity, 0..1, of each pair of signatures [P, 16]: [P]; by chance 1 of 256 minima agree."""
    first, second = (np.asarray(side, np.uint64) for side in (left, right))
    agreeing = _minhash.num_equal_slots(first, second) / _minhash.NUM_SLOTS
    return np.clip((agreeing - 1 / 256) / (1 - 1 / 256), 0, 1)


def connected_components(num_members: int, left: npt.ArrayLike, right: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The smallest member of the component of each of `num_members` members, under edges left[i] - right[i]: [N]."""
    edges: Any = (np.asarray(one, np.int64) for one in (left, right))
    return np.asarray(connect(num_members, *edges), np.int64)
