"""clusters: hierarchical k-means over the image features of a clip signal, and nearness to a target set.

The finest level clusters the images that dedupe keeps; each further level clusters the centroids of the level below (Vo
et al., arXiv 2405.15613, without its resampling rounds). `near_target` is DataComp's image-based filter (arXiv
2304.14108): whether the nearest centroid is also the nearest centroid of an image of the target set.

The sample of images for k-means, and its initial centroids, are functions of the uids, so that shards and workers do
not change the result. The driver holds POINTS_PER_CENTROID features per cluster of the finest level.

Legend: K clusters of a level, D embedding, S images in the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pairloom.pipelines.algorithms.kmeans import POINTS_PER_CENTROID, Features, nearest, normalised, train
from pairloom.pipelines.algorithms.seeded_hash import mixed
from pairloom.pipelines.engine.feature_files import features_of_rows
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.images.image_sets import fingerprint_of
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.signals.target_set import target_features
from pairloom.schemas.data_set.manifest import ShardEntry, load_manifest, table_url
from pairloom.schemas.data_set.tables import check_joined, read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import put_array, read_array
from pairloom.schemas.storage.digests import content_of

VERSION = 1
SEED = 0  # for the sample of images
CLUSTER_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("cluster", pa.int32()),  # at the finest level; null without features
        pa.field("near_target", pa.float32()),  # 1 or 0; null without features or without a target
    ]
)

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ClusterJob:
    """The arguments of the tasks."""

    name: str
    raw_folder: str
    dedupe_folder: str
    features_folder: str
    folder: str
    model: str  # model of the features; also for the images of a target set


def centroids_url(folder: str, level: int) -> str:
    """URL of the centroids [K, D] of a level; 0 is the finest."""
    return storage.join(folder, f"centroids-{level}.npy")


def parents_url(folder: str, level: int) -> str:
    """URL of the parent cluster, one level above, of each cluster of a level: [K]."""
    return storage.join(folder, f"parents-{level}.npy")


def target_url(folder: str) -> str:
    """URL of the clusters of the finest level that are nearest to an image of the target set."""
    return storage.join(folder, "target-clusters.npy")


@dataclass(frozen=True)
class Tree:
    """The hierarchy of clusters."""

    num_clusters: int  # at the finest level
    parents: tuple[Ids, ...]  # per level except the last, from the finest up: parent of each cluster


def load_tree(folder: str) -> Tree:
    """The tree of a complete folder."""
    levels: Any = load_manifest(folder).details["num_clusters"]
    return Tree(levels[0], tuple(load_array(parents_url(folder, level)) for level in range(len(levels) - 1)))


@lru_cache(maxsize=4)
def load_array(url: str) -> Any:
    """An array that never changes; read once per process."""
    return read_array(url)


class ClusterSignals(Signal):
    """cluster, and near_target if there is a target: hierarchical k-means over the image features of a signal.

    near_target is 1 if the nearest centroid is also the nearest centroid of an image of `target`.
    """

    kind: Literal["clusters"]
    name: Name
    features: Name
    """Name of a clip signal with one model."""
    num_clusters: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Clusters per level, the finest first: with [10000, 1000, 100], level 1 clusters images, level 2 centroids."""
    centroids: str | None = None
    """A .npy file [K, D] of centroids, instead of k-means."""
    target: str | None = None
    """The target set: a .npy or .npz of features, or a folder or tars of images for the model of the features."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "features": "its result is hashed",
        "centroids": "its content is hashed",
        "target": "its content is hashed",
    }
    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("near_target",)

    @model_validator(mode="after")
    def _levels_shrink(self) -> ClusterSignals:
        if (self.num_clusters is None) == (self.centroids is None):
            raise ValueError("give num_clusters or centroids, not both")
        levels = self.num_clusters or (1,)
        if not levels or any(coarse >= fine for fine, coarse in pairwise(levels)):
            raise ValueError("num_clusters: the finest level comes first, and each level has fewer than the one before")
        return self

    def writes_clusters(self) -> bool:
        """True."""
        return True

    def needs(self) -> tuple[str, ...]:
        """The signal with the features."""
        return (self.features,)

    def reads_dedupe(self) -> bool:
        """True: only images that dedupe keeps are clustered."""
        return True

    def check(self, signals: Mapping[str, Signal]) -> None:
        """Check that the features exist and have one model. Raises ValueError."""
        if self.features not in signals or not signals[self.features].writes_features():
            raise ValueError(f"signals.{self.name}.features: {self.features} is not a clip signal")
        if signals[self.features].feature_model() is None:
            raise ValueError(f"signals.{self.name}.features: {self.features} is not a clip signal of one model")

    def settings(self) -> dict[str, Any]:
        """The levels; files are part of `inputs`."""
        return {"kind": self.kind, "num_clusters": self.num_clusters}

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the centroids and of the target."""
        inputs = {}
        if self.centroids is not None:
            inputs["centroids"] = content_of(self.centroids, f"signals.{self.name}.centroids")
        if self.target is not None:
            inputs["target"] = fingerprint_of(self.target)
        return inputs

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Train the centroids, then assign each shard in a Ray task."""
        features, dedupe_folder = work.needed[self.features], str(work.dedupe_folder)
        model = str(features.signal.feature_model())
        job = ClusterJob(self.name, work.raw_folder, dedupe_folder, features.folder, work.folder, model)
        return {"num_clusters": cluster_shards(job, self, work.shards, work.num_done)}


def cluster_shards(job: ClusterJob, rules: ClusterSignals, shards: Sequence[ShardEntry], num_done: int) -> list[int]:
    """Write the clusters of raw shards. Returns the number of clusters per level."""
    if not storage.exists(target_url(job.folder)):  # written last
        _make_tree(job, rules)
    run_shards(f"signals {job.name}", partial(_assign_shard, job, rules.target is not None), shards, num_done)
    num_levels = len(rules.num_clusters or [1])
    return [len(load_array(centroids_url(job.folder, level))) for level in range(num_levels)]


def _make_tree(job: ClusterJob, rules: ClusterSignals) -> None:
    """Write the centroids of all levels, the parents, and the clusters of the target set."""
    if rules.centroids is not None:
        centroids_KD = read_centroids(rules.centroids)
    else:
        centroids_KD = _train_finest(job, (rules.num_clusters or [1])[0])
    put_array(centroids_url(job.folder, 0), centroids_KD)
    finest_KD = centroids_KD
    for level, num_clusters in enumerate((rules.num_clusters or [1])[1:]):
        above_KD = train(centroids_KD, min(num_clusters, len(centroids_KD)))
        put_array(parents_url(job.folder, level), nearest(centroids_KD, above_KD))
        put_array(centroids_url(job.folder, level + 1), above_KD)
        centroids_KD = above_KD
    target_clusters = np.zeros(0, np.int32)
    if rules.target is not None:
        features = target_features(rules.target, job.model)
        if features.shape[1] != finest_KD.shape[1]:
            raise InputError(
                f"signals.{job.name}.target: {rules.target} has {features.shape[1]} features per image, "
                f"the centroids have {finest_KD.shape[1]}; use the same model for both"
            )
        target_clusters = np.unique(nearest(features, finest_KD))
    put_array(target_url(job.folder), target_clusters)


def read_centroids(url: str) -> Features:
    """Given centroids [K, D]; their lengths are kept, because DataComp's decide by them. Raises InputError."""
    try:
        centroids = read_array(url)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise InputError(f"{url}: not a .npy file of centroids: {error}") from error
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not len(centroids):
        raise InputError(f"{url}: not one array [clusters, features] of centroids")
    return centroids.astype(np.float32)


def _train_finest(job: ClusterJob, num_clusters: int) -> Features:
    """k-means over a random sample of the images that dedupe keeps, in random order."""
    dedupe = load_manifest(job.dedupe_folder)
    names = [shard.name for shard in dedupe.shards]
    share = num_clusters * POINTS_PER_CENTROID / max(1, dedupe.num_samples)
    sampled = run_shards(f"{job.name}: sample", partial(_sample_shard, job, share), names)
    draws = np.concatenate([draws for draws, _ in sampled])
    order = np.argsort(draws, kind="stable")
    if not len(order):
        raise InputError(f"signals.{job.name}: no image of {job.features_folder} has features; check that signal")
    features_SD = np.concatenate([features for _, features in sampled])[order]
    return train(normalised(features_SD), min(num_clusters, len(features_SD)))


def _sample_shard(job: ClusterJob, share: float, name: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float16]]:
    """Draws and features of the sampled images of one shard."""
    dedupe = read_table(table_url(job.dedupe_folder, name), ["uid", "drop_reason"])
    has_features = _has_features(job, dedupe, name)
    rows = np.flatnonzero(has_features & np.asarray(pc.is_null(dedupe["drop_reason"])))
    draws = mixed(pack_uids(dedupe["uid"].take(pa.array(rows)).to_pylist()), SEED)
    if share < 1:
        is_drawn = draws < np.uint64(share * 2.0**64)
        rows, draws = rows[is_drawn], draws[is_drawn]
    return draws, features_of_rows(job.features_folder, name, rows)


def _has_features(job: ClusterJob, table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """Whether each row has features; `table` is any table of the same raw shard."""
    signal = read_table(table_url(job.features_folder, name), ["uid", "clip_score"])
    check_joined(table, signal, f"{job.features_folder}: {name}")
    return np.asarray(pc.is_valid(signal["clip_score"]))


def _assign_shard(job: ClusterJob, has_target: bool, shard: ShardEntry) -> None:
    """Write the clusters of one raw shard."""
    uids = read_table(table_url(job.raw_folder, shard.name), ["uid"])
    has_features = _has_features(job, uids, shard.name)
    rows = np.flatnonzero(has_features).astype(np.int32)
    clusters = np.zeros(uids.num_rows, np.int32)
    features = normalised(features_of_rows(job.features_folder, shard.name, rows))
    clusters[rows] = nearest(features, load_array(centroids_url(job.folder, 0)))
    near_target = np.isin(clusters, load_array(target_url(job.folder))).astype(np.float32)
    columns = [
        uids["uid"],
        pa.array(clusters, pa.int32(), mask=~has_features),
        pa.array(near_target, pa.float32(), mask=~(has_features & has_target)),
    ]
    write_table(table_url(job.folder, shard.name), pa.table(columns, schema=CLUSTER_SIGNALS))
