"""Semantic duplicates (SemDeDup, arXiv 2303.09540): images whose features agree, compared inside k-means clusters.

Two images are near where the cosine of their features is above the threshold and k-means puts them in one cluster.
Which of them stay is the policy's:

- `greedy`: images are walked in keep order; one is dropped when a *kept* one is near.
- `official`: images are walked from the outside of the cluster in; one is dropped when any earlier one is near, be it
  kept or not (as the paper's code does: in a chain A - B - C both B and C go).
- `components`: the best image of everything that is linked, chains included, stays.

Memory is bounded: similarities are computed in blocks and never kept. A task reads the features of its clusters from
the signal's files; the driver holds one number an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.components import Indices, find, unite
from pipelines.dedupe.kmeans import POINTS_PER_CENTROID, Features, nearest, normalised, train
from pipelines.dedupe.slim import Slim
from pipelines.run_step import run_shards
from schemas import storage
from schemas.curate_recipe import SemanticRecipe

IMAGES_PER_CLUSTER = 1000
IMAGES_PER_TASK = 250_000
BLOCK = 1024  # images compared at once


@dataclass(frozen=True)
class FeatureShards:
    """Where image features are read from: a clip signal's folder and the raw shards' names."""

    folder: str
    names: tuple[str, ...]

    def read(self, shard: int, rows: npt.NDArray[np.int32]) -> Features:
        """Unit features of some rows of one shard."""
        url = storage.join(self.folder, f"{self.names[shard]}.image_features.npy")
        if storage.is_local(url):
            return normalised(np.load(storage.local_path(url), mmap_mode="r")[rows])
        return normalised(np.load(io.BytesIO(storage.read_bytes(url)))[rows])


@dataclass(frozen=True)
class Members:
    """Some images by place (in keep order), raw shard and row; and their cluster where that is known."""

    place: Indices
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    cluster: npt.NDArray[np.int32]

    def take(self, chosen: Indices) -> Members:
        """Some of them."""
        return Members(self.place[chosen], self.shard[chosen], self.row[chosen], self.cluster[chosen])

    def features(self, files: FeatureShards) -> Features:
        """Unit features of all, in their order; each shard is opened once."""
        shards = np.unique(self.shard)
        parts = [np.flatnonzero(self.shard == shard) for shard in shards]
        read = [files.read(int(shard), self.row[part]) for shard, part in zip(shards, parts, strict=True)]
        features = np.empty((len(self.place), read[0].shape[1]), np.float32)
        for part, rows in zip(parts, read, strict=True):
            features[part] = rows
        return features


def semantic_duplicates(slim: Slim, images: Indices, settings: SemanticRecipe, files: FeatureShards) -> Indices:
    """For each of `images` (samples, in keep order) the place of the image kept instead of it; -1 where it is kept."""
    kept_instead = np.full(len(images), -1)
    if not len(images):
        return kept_instead
    members = Members(np.arange(len(images)), slim.shard[images], slim.row[images], np.zeros(len(images), np.int32))
    centroids = _centroids(slim, images, members, settings, files)
    by_shard = _split(members, np.argsort(members.shard, kind="stable"), members.shard)
    found = run_shards("dedupe: clusters", partial(_assign, files, centroids), by_shard)
    for part, cluster in zip(by_shard, found, strict=True):
        members.cluster[part.place] = cluster
    tasks = _tasks_of_clusters(members)
    decide = partial(_decide_clusters, files, centroids, settings)
    for part, instead in zip(tasks, run_shards("dedupe: semantic", decide, tasks), strict=True):
        kept_instead[part.place] = instead
    return kept_instead


def _centroids(
    slim: Slim, images: Indices, members: Members, settings: SemanticRecipe, files: FeatureShards
) -> Features:
    """Centroids from the images with the smallest uids: these are hashes, so they are a random sample of any order."""
    num_clusters = min(settings.num_clusters or max(1, len(images) // IMAGES_PER_CLUSTER), len(images))
    chosen = np.argsort(images)[: num_clusters * POINTS_PER_CENTROID]  # samples are in the order of their uids
    sample = members.take(chosen)
    by_shard = _split(sample, np.argsort(sample.shard, kind="stable"), sample.shard)
    read = run_shards("dedupe: sample", partial(_read, files), by_shard)
    place_in_sample = np.empty(len(images), np.int64)
    place_in_sample[sample.place] = np.arange(len(chosen))
    features = np.empty((len(chosen), read[0].shape[1]), np.float32)
    for part, rows in zip(by_shard, read, strict=True):
        features[place_in_sample[part.place]] = rows
    return train(features, num_clusters)


def _read(files: FeatureShards, members: Members) -> Features:
    return members.features(files)


def _assign(files: FeatureShards, centroids: Features, members: Members) -> npt.NDArray[np.int32]:
    return nearest(members.features(files), centroids)


def _split(members: Members, order: Indices, values: npt.NDArray[np.int32]) -> list[Members]:
    """Members cut where `values` changes along `order`."""
    edges = np.flatnonzero(np.diff(values[order])) + 1
    return [members.take(part) for part in np.split(order, edges)]


def _tasks_of_clusters(members: Members) -> list[Members]:
    """Whole clusters together, about IMAGES_PER_TASK a task, in keep order inside each cluster."""
    sizes = np.bincount(members.cluster)
    task_of_cluster = ((np.cumsum(sizes) - sizes) // IMAGES_PER_TASK).astype(np.int32)
    return _split(members, np.argsort(members.cluster, kind="stable"), task_of_cluster[members.cluster])


def _decide_clusters(files: FeatureShards, centroids: Features, settings: SemanticRecipe, members: Members) -> Indices:
    """The policy over some whole clusters: the place of the image kept instead, -1 where it is kept."""
    kept_instead = np.full(len(members.place), -1)
    features = members.features(files)
    edges = np.flatnonzero(np.diff(members.cluster)) + 1
    for inside in np.split(np.arange(len(members.place)), edges):
        of_cluster = features[inside]
        centroid = centroids[members.cluster[inside[0]]]
        instead = decide_cluster(of_cluster, centroid, settings.threshold, settings.policy)
        dropped = instead >= 0
        kept_instead[inside[dropped]] = members.place[inside[instead[dropped]]]
    return kept_instead


def decide_cluster(features: Features, centroid: npt.NDArray[np.float32], threshold: float, policy: str) -> Indices:
    """For each image of a cluster, in keep order, which one is kept instead; -1 where it is kept."""
    if policy != "official":
        return _walk_cluster(features, threshold, policy == "components")
    order = np.argsort(features @ centroid, kind="stable")  # the farthest first
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
