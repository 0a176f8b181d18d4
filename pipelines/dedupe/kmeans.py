"""Spherical k-means: unit features in clusters of one direction, the same for any number of workers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pipelines.run_step import run_shards

# D features of an image, K centroids
Features = npt.NDArray[np.float32]

POINTS_PER_CENTROID = 64
NUM_ITERATIONS = 10
BLOCK_ROWS = 8192  # of a matrix product; blocks never depend on the workers, so neither does a rounding
MAX_TASKS = 16  # of an iteration: each returns a sum for every centroid
ROW_MULTIPLE = 64  # products are padded to it: every row goes through the same code


def normalised(features: npt.NDArray[Any]) -> Features:
    """Rows of length one, in single precision."""
    single = features.astype(np.float32)
    return np.asarray(single / np.maximum(np.linalg.norm(single, axis=1, keepdims=True), 1e-12), np.float32)


def nearest(features: Features, centroids: Features) -> npt.NDArray[np.int32]:
    """The nearest centroid of each row."""
    result = np.empty(len(features), np.int32)
    for start in range(0, len(features), BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        padding = -len(block) % ROW_MULTIPLE
        padded = np.concatenate([block, np.zeros((padding, block.shape[1]), np.float32)]) if padding else block
        result[start : start + len(block)] = (padded @ centroids.T).argmax(axis=1)[: len(block)]
    return result


def train(sample_SD: Features, num_clusters: int) -> Features:
    """Centroids [K, D] of a sample whose order is random; its first K rows are the start."""
    centroids_KD = sample_SD[:num_clusters].copy()
    if num_clusters == 1:
        return centroids_KD
    shared = [ray.put(sample_SD)]  # in a list, so that a task takes the references and not copies
    size = max(BLOCK_ROWS, -(-len(sample_SD) // MAX_TASKS))
    parts = [(start, start + size) for start in range(0, len(sample_SD), size)]
    for _ in range(NUM_ITERATIONS):
        found = run_shards("dedupe: k-means", partial(_sums, [*shared, ray.put(centroids_KD)]), parts)
        sums_KD = np.sum(np.stack([part for part in found]), axis=0)
        is_used = np.linalg.norm(sums_KD, axis=1) > 0  # an empty cluster stays where it is
        centroids_KD[is_used] = normalised(sums_KD[is_used])
    return centroids_KD


def _sums(shared: list[Any], part: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Sum of the rows nearest to each centroid, of one part of the sample. `shared`: the sample and the centroids."""
    sample_SD, centroids_KD = ray.get(shared)
    block = sample_SD[part[0] : part[1]]
    cluster = nearest(block, centroids_KD)
    order = np.argsort(cluster, kind="stable")
    used, starts = np.unique(cluster[order], return_index=True)
    sums = np.zeros(centroids_KD.shape, np.float64)
    sums[used] = np.add.reduceat(block[order].astype(np.float64), starts, axis=0)
    return sums
