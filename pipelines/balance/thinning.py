"""The last rule of a selection: balancing draws from the samples that all other rules keep.

A plan first scans the passing rows of every shard, then makes the draw. Both kinds draw by a hash of (seed, uid).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.pipelines.algorithms.seeded_hash import draws, mixed
from pairloom.pipelines.balance.balance import entries_url
from pairloom.pipelines.balance.draw import Counts, Probabilities, count_entries, keep_probabilities
from pairloom.pipelines.balance.entries import load_entries
from pairloom.pipelines.balance.quotas import cluster_quotas
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.signals.clusters import Tree, load_tree
from pairloom.schemas.recipes.balance import BalanceRecipe, ClusterBalance, EntryBalance

Mask = npt.NDArray[np.bool_]


class Thinning(Protocol):
    """The draw, after all shards were scanned."""

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Whether the draw keeps each row, and its probability to be kept."""
        ...


class Plan(Protocol):
    """Collects statistics of all passing rows."""

    def scan(self, table: pa.Table, passing: Mask) -> Any:
        """The statistics of one shard."""
        ...

    def finish(self, statistics: Iterable[Any]) -> Thinning:
        """The draw, from the statistics of all shards."""
        ...


def plan_of(rules: BalanceRecipe, folder: str) -> Plan:
    """The plan of a recipe's balance part; `folder` has the matches of captions, or the clusters."""
    if isinstance(rules, EntryBalance):
        return EntryPlan(rules, len(load_entries(entries_url(folder))))
    return ClusterPlan(rules, load_tree(folder))


@dataclass(frozen=True)
class EntryPlan:
    """MetaCLIP: counts the samples that match each entry."""

    rules: EntryBalance
    num_entries: int

    def scan(self, table: pa.Table, passing: Mask) -> Counts:
        """Number of matches per entry."""
        return count_entries(table["entries"], passing, self.num_entries)

    def finish(self, statistics: Iterable[Counts]) -> EntryThinning:
        """Sum the matches over all shards."""
        return EntryThinning(sum(statistics, np.zeros(self.num_entries, np.int64)), self.rules.t, self.rules.seed)


@dataclass(frozen=True)
class EntryThinning:
    """Each entry keeps about t of its samples."""

    counts: Counts
    t: int
    seed: int

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Rows whose draw is below their probability."""
        probabilities = keep_probabilities(table["entries"], self.counts, self.t)
        return draws(_uids(table), self.seed) < probabilities, probabilities


@dataclass(frozen=True)
class ClusterPlan:
    """Clusters: collects cluster and draw of every sample, 12 bytes per sample."""

    rules: ClusterBalance
    tree: Tree

    def scan(self, table: pa.Table, passing: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Cluster and draw of the passing rows with a cluster."""
        clusters = _clusters(table)
        rows = np.flatnonzero(passing & (clusters >= 0))
        return clusters[rows], mixed(_uids(table.take(pa.array(rows))), self.rules.seed)

    def finish(self, statistics: Iterable[Any]) -> ClusterThinning:
        """Quotas over the tree of clusters, and the largest kept draw per cluster."""
        collected = [(np.zeros(0, np.int32), np.zeros(0, np.uint64)), *statistics]
        clusters, drawn = (np.concatenate(column) for column in zip(*collected, strict=True))
        counts = np.bincount(clusters, minlength=self.tree.num_clusters)
        quotas = cluster_quotas(counts, self.tree.parents, self.rules.num_samples)
        order = np.lexsort((drawn, clusters))
        first = np.cumsum(counts) - counts
        last = np.zeros(len(counts), np.uint64)
        last[quotas > 0] = drawn[order[(first + quotas - 1)[quotas > 0]]]
        return ClusterThinning(counts, quotas, last, self.rules.seed)


@dataclass(frozen=True)
class ClusterThinning:
    """Each cluster keeps its quota: the samples with the smallest draws."""

    counts: Counts
    quotas: Counts
    last: npt.NDArray[np.uint64]  # largest kept draw per cluster
    seed: int

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Rows whose draw is within the quota of their cluster."""
        clusters = _clusters(table)
        index = np.maximum(clusters, 0)
        has_quota = (clusters >= 0) & (self.quotas[index] > 0)
        is_drawn = mixed(_uids(table), self.seed) <= self.last[index]
        shares = self.quotas / np.maximum(self.counts, 1)
        return has_quota & is_drawn, np.where(has_quota, shares[index], 0.0)


def _clusters(table: pa.Table) -> npt.NDArray[np.int32]:
    """Cluster per row; -1: none."""
    clusters: npt.NDArray[np.int32] = table["cluster"].fill_null(-1).to_numpy()
    return clusters


def _uids(table: pa.Table) -> npt.NDArray[np.uint64]:
    return pack_uids(table["uid"].to_pylist())
