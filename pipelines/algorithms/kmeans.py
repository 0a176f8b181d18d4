"""Spherical k-means (Dhillon and Modha 2001): the same centroids for any number of workers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pairloom.pipelines.engine.run_shards import run_shards

# D features of an image, K centroids
Features = npt.NDArray[np.float32]

POINTS_PER_CENTROID = 64
NUM_ITERATIONS = 10
BLOCK_ROWS = 8192  # rows per matrix product; independent of the workers, so that rounding is too
BLOCK_CENTROIDS = 4096
MAX_TASKS = 16  # per iteration: each task may return a sum per centroid
ROW_MULTIPLE = 64  # products are padded to it, so that the BLAS uses the same code for all rows


def normalised(features: npt.NDArray[Any]) -> Features:
    """Rows scaled to length one, as float32."""
    single = features.astype(np.float32)
    return np.asarray(single / np.maximum(np.linalg.norm(single, axis=1, keepdims=True), 1e-12), np.float32)


def nearest(features: Features, centroids: Features, block_centroids: int = BLOCK_CENTROIDS) -> npt.NDArray[np.int32]:
    """Index of the centroid with the largest dot product, per row; `block_centroids` are compared at once."""
    result = np.empty(len(features), np.int32)
    for start in range(0, len(features), BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        padding = -len(block) % ROW_MULTIPLE
        padded = np.concatenate([block, np.zeros((padding, block.shape[1]), np.float32)]) if padding else block
        result[start : start + len(block)] = _nearest_of_block(padded, centroids, block_centroids)[: len(block)]
    return result


def _nearest_of_block(block: Features, centroids: Features, size: int) -> npt.NDArray[np.int64]:
    """The nearest centroid of each row, the first among equals; `size` centroids at a time."""
    best = np.full(len(block), -np.inf, np.float32)
    found = np.zeros(len(block), np.int64)
    for first in range(0, len(centroids), size):
        similarity = block @ centroids[first : first + size].T
        index = similarity.argmax(axis=1)
        value = similarity[np.arange(len(block)), index]
        is_nearer = value > best
        found[is_nearer], best[is_nearer] = first + index[is_nearer], value[is_nearer]
    return found


def train(sample_SD: Features, num_clusters: int, on_ray: bool = True) -> Features:
    """Centroids [K, D] of a sample in random order; its first K rows are the initial centroids. `on_ray`: in tasks."""
    centroids_KD = sample_SD[:num_clusters].copy()
    if num_clusters == 1:
        return centroids_KD
    sample = ray.put(sample_SD) if on_ray else None
    size = max(BLOCK_ROWS, -(-len(sample_SD) // MAX_TASKS))
    chunks = [(start, start + size) for start in range(0, len(sample_SD), size)]
    for _ in range(NUM_ITERATIONS):
        sums_KD = np.zeros(centroids_KD.shape, np.float64)
        if on_ray and len(chunks) > 1:
            shared = [sample, ray.put(centroids_KD)]  # in a list, Ray passes references, not copies
            found = run_shards("k-means", partial(_shared_sums, shared), chunks)
        else:
            found = [_sums(sample_SD, centroids_KD, chunk) for chunk in chunks]
        for used, sums in found:
            sums_KD[used] += sums
        is_used = np.linalg.norm(sums_KD, axis=1) > 0  # an empty cluster keeps its centroid
        centroids_KD[is_used] = normalised(sums_KD[is_used])
    return centroids_KD


Sums = tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]


def _shared_sums(shared: list[Any], chunk: tuple[int, int]) -> Sums:
    sample_SD, centroids_KD = ray.get(shared)
    return _sums(sample_SD, centroids_KD, chunk)


def _sums(sample_SD: Features, centroids_KD: Features, chunk: tuple[int, int]) -> Sums:
    """The used centroids of one chunk of the sample, and the sum of the rows of each."""
    block = sample_SD[chunk[0] : chunk[1]]
    cluster = nearest(block, centroids_KD)
    order = np.argsort(cluster, kind="stable")
    used, starts = np.unique(cluster[order], return_index=True)
    return used, np.add.reduceat(block[order].astype(np.float64), starts, axis=0)
