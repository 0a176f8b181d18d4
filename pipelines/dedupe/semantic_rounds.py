"""The rounds of tasks that drop semantic duplicates among the remaining images.

    sample   batch of shards -> features of some images, from which the driver trains the centroids
    assign   batch -> images with their features, by part of the clusters
    clusters part of the clusters -> dropped images, and joined groups of samples
    groups   one task: the smallest uid of each set of joined groups
    finish   part of the samples -> decisions, by batch

Images of earlier data sets (`against`) come first in the keep order, if their features exist. The features of an image
are read once from the signal's files, by shard, and once from the spill files, by cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pairloom.pipelines.algorithms.kmeans import POINTS_PER_CENTROID, Features, nearest, normalised, train
from pairloom.pipelines.algorithms.seeded_hash import mixed
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.dedupe.criteria.semantic import decide_cluster
from pairloom.pipelines.dedupe.decide import SEMANTIC, Context, keep_order
from pairloom.pipelines.dedupe.rounds import Job, write_decisions
from pairloom.pipelines.dedupe.summary import GroupSizes
from pairloom.pipelines.engine.batches import Batch
from pairloom.pipelines.engine.feature_files import Stored, read_features
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack
from pairloom.schemas.recipes.dedupe import SemanticRecipe
from pairloom.schemas.storage import storage

IMAGES_PER_CLUSTER = 1000  # up to a million images; beyond, number and size of clusters grow with the square root
IMAGES_PER_PART = 250_000
SAMPLE_SEED = 0

Uids = npt.NDArray[np.uint64]  # [rows, 2]: halves


@dataclass(frozen=True)
class Clusters:
    """The split of the images into clusters and parts."""

    num_clusters: int
    sample_share: float  # share of the images whose features train the centroids
    images: SpillTable  # with features, by part of the clusters
    dropped: SpillTable  # by part of the samples
    joins: SpillTable
    groups: SpillTable  # by part of the samples


def plan_clusters(job: Job, num_images: int) -> Clusters:
    """The split, a function of the number of images alone."""
    settings = _settings(job)
    automatic = min(num_images // IMAGES_PER_CLUSTER, isqrt(num_images))
    num_clusters = max(1, min(settings.num_clusters or automatic, num_images))
    share = min(1.0, num_clusters * POINTS_PER_CENTROID / max(1, num_images))
    num_parts = min(num_clusters, max(1, -(-num_images // IMAGES_PER_PART)))

    def table(name: str, num_files: int, num_parts: int) -> SpillTable:
        return SpillTable(storage.join(job.tables.folder, name), num_files, num_parts)

    return Clusters(
        num_clusters,
        share,
        table("clusters", len(job.plan.first_shards), num_parts),
        table("dropped", num_parts, job.plan.num_parts),
        table("joins", num_parts, 1),
        table("groups", 1, job.plan.num_parts),
    )


def decide_semantic(job: Job, batches: Sequence[Batch], num_images: int) -> GroupSizes:
    """Drop semantic duplicates among `num_images` remaining images. Returns the sizes of all groups."""
    clusters = plan_clusters(job, num_images)
    if num_images:
        sampled = run_shards("dedupe: sample", partial(sample_batch, job, clusters), batches)
        centroids = [ray.put(train_on(sampled, clusters.num_clusters))]
        run_shards("dedupe: assign", partial(assign_batch, job, clusters, centroids), batches)
        parts = range(clusters.images.num_parts)
        run_shards("dedupe: clusters", partial(decide_clusters, job, clusters, centroids), parts)
    (sizes,) = run_shards("dedupe: groups", partial(join_groups, clusters, num_images), [0])
    finish = partial(finish_part, job, clusters, num_images)
    return sum(run_shards("dedupe: finish", finish, range(job.plan.num_parts)), sizes)


def _settings(job: Job) -> SemanticRecipe:
    settings = job.settings.semantic
    assert settings is not None  # the caller checks it
    return settings


def sample_batch(job: Job, clusters: Clusters, batch: Batch) -> tuple[Uids, Features]:
    """Uids and features of a sample of the images of one batch, drawn by a hash of the uid."""
    images = job.tables.left.read(batch.index)
    draws = (mixed(np.ascontiguousarray(images["uid"]), SAMPLE_SEED) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    chosen = images[draws < clusters.sample_share]
    return np.ascontiguousarray(chosen["uid"]), normalised(_features(batch, chosen))


def _features(batch: Batch, images: Rows) -> Stored:
    """Features of images of a batch; a data set without features has no remaining images."""
    if batch.folders.features is None:
        return np.empty((0, 0), np.float16)
    return read_features(batch.folders.features, batch.shards, images)


def train_on(sampled: Sequence[tuple[Uids, Features]], num_clusters: int) -> Features:
    """Centroids of the sample, independent of the order of the batches."""
    uids = np.concatenate([one for one, _ in sampled])
    features = np.concatenate([one for _, one in sampled if len(one)])
    order = np.argsort(mixed(uids, SAMPLE_SEED), kind="stable")
    return train(features[order], min(num_clusters, len(order)))


def assign_batch(job: Job, clusters: Clusters, centroids: Sequence[Any], batch: Batch) -> None:
    """Write the images of one batch with their features, by part of the clusters."""
    images = job.tables.left.read(batch.index)
    features = _features(batch, images)
    cluster = nearest(normalised(features), ray.get(centroids[0])) if len(images) else np.empty(0, np.int32)
    columns = {name: images[name] for name in images.dtype.names or ()}
    rows = pack({**columns, "cluster": cluster, "features": features})
    num_parts = clusters.images.num_parts
    clusters.images.write(batch.index, rows, cluster.astype(np.int64) * num_parts // clusters.num_clusters)


def decide_clusters(job: Job, clusters: Clusters, centroids: Sequence[Any], part: int) -> None:
    """Apply the policy to whole clusters: write dropped images and joined groups."""
    settings, trained = _settings(job), ray.get(centroids[0])
    images = clusters.images.read(part)
    images = images[np.lexsort((images["uid"][:, 1], images["uid"][:, 0]))]
    context: Context = ray.get(job.context[0])
    is_own = images["shard"] < context.num_own
    order = keep_order(job.settings.keep, images["preference"], images["score"], images["area"], is_own)
    order = order[np.argsort(images["cluster"][order], kind="stable")]
    lost, kept = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    cosines = [np.empty(0, np.float32)]
    for inside in np.split(order, np.flatnonzero(np.diff(images["cluster"][order])) + 1):
        if not len(inside):
            continue
        centroid = trained[images["cluster"][inside[0]]]
        features = normalised(images["features"][inside])
        num_earlier = int((~is_own[inside]).sum())
        instead = decide_cluster(features, centroid, settings.threshold, settings.policy, num_earlier)
        gone = np.flatnonzero(instead >= 0)
        lost.append(inside[gone])
        kept.append(inside[instead[gone]])
        cosines.append(np.einsum("bd,bd->b", features[gone], features[instead[gone]]))
    one, other = images[np.concatenate(lost)], images[np.concatenate(kept)]
    dropped = pack({"image": one["uid"], "kept_instead": other["uid"], "similarity": np.concatenate(cosines)})
    clusters.dropped.write(part, dropped, one["part"])
    names = ("group", "group_size", "part")
    ends = {f"{name}_{side}": rows[name] for side, rows in (("a", one), ("b", other)) for name in names}
    clusters.joins.write(part, pack(ends), np.zeros(len(one), np.int64))


def join_groups(clusters: Clusters, num_images: int, _: int) -> GroupSizes:
    """Join the groups of dropped and kept images under their smallest uid. Returns the sizes of joined groups."""
    if not num_images:
        return GroupSizes()
    joins = clusters.joins.read(0)
    names = np.concatenate([joins["group_a"], joins["group_b"]])
    uids, first, group_of = np.unique(_sortable(names), return_index=True, return_inverse=True)
    groups = names[first]
    roots = connect(len(uids), group_of[: len(joins)], group_of[len(joins) :])
    sizes = np.concatenate([joins["group_size_a"], joins["group_size_b"]])[first]
    parts = np.concatenate([joins["part_a"], joins["part_b"]])[first]
    clusters.groups.write(0, pack({"group": groups, "root": groups[roots]}), parts)
    return GroupSizes.of(groups, np.bincount(roots, sizes, minlength=len(roots)).astype(np.int64))


def finish_part(job: Job, clusters: Clusters, num_images: int, part: int) -> GroupSizes:
    """Add the semantic decisions to one part. Returns the sizes of its groups that were not joined."""
    rows = job.tables.drafts.read(0, only=part).copy()
    groups = np.empty(0, [("group", np.uint64, 2), ("root", np.uint64, 2)])
    if num_images:
        dropped, groups = clusters.dropped.read(part), clusters.groups.read(part)
        index = _indices(rows["image"], dropped["image"])
        gone = (index >= 0) & (rows["reason"] == 0)
        rows["reason"][gone], rows["kept_instead"][gone] = SEMANTIC, dropped["kept_instead"][index[gone]]
        rows["distance"][gone], rows["similarity"][gone] = -1, dropped["similarity"][index[gone]]
    index = _indices(rows["group"], groups["group"])
    _, first, sizes = np.unique(_sortable(rows["group"][index < 0]), return_index=True, return_counts=True)
    untouched = GroupSizes.of(rows["group"][index < 0][first], sizes)
    rows["group"][index >= 0] = groups["root"][index[index >= 0]]
    context: Context = ray.get(job.context[0])
    write_decisions(job, part, rows, context.num_own)
    return untouched


def _sortable(uids: Uids) -> npt.NDArray[np.void]:
    """Uids as values with the same sort order."""
    return np.ascontiguousarray(uids).astype(">u8").view("V16").ravel()


def _indices(uids: Uids, among: Uids) -> npt.NDArray[np.int64]:
    """Index of each uid in `among` (unique uids), or -1."""
    _, inverse = np.unique(np.concatenate([_sortable(among), _sortable(uids)]), return_inverse=True)
    index = np.full(int(inverse.max(initial=-1)) + 1, -1)
    index[inverse[: len(among)]] = np.arange(len(among))
    return index[inverse[len(among) :]]
