"""The last rule of a selection: what balancing draws, of the samples that all other rules keep.

A plan first looks at the passing rows of every shard, then gives the draw. Both kinds draw by a hash of (seed, uid).
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
    """Decides about rows when all shards have been looked at."""

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Which rows the draw keeps, and the probability that it had to keep each."""
        ...


class Plan(Protocol):
    """What balancing needs to know of all passing rows together."""

    def look(self, table: pa.Table, passing: Mask) -> Any:
        """What it notes of one shard."""
        ...

    def finish(self, parts: Iterable[Any]) -> Thinning:
        """The draw, from the notes of all shards."""
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

    def look(self, table: pa.Table, passing: Mask) -> Counts:
        """Matches of each entry."""
        return count_entries(table["entries"], passing, self.num_entries)

    def finish(self, parts: Iterable[Counts]) -> EntryThinning:
        """Sum the matches up."""
        return EntryThinning(sum(parts, np.zeros(self.num_entries, np.int64)), self.rules.t, self.rules.seed)


@dataclass(frozen=True)
class EntryThinning:
    """Each entry lets t of its samples through."""

    counts: Counts
    t: int
    seed: int

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Rows drawn below their probability."""
        probabilities = keep_probabilities(table["entries"], self.counts, self.t)
        return draws(_uids(table), self.seed) < probabilities, probabilities


@dataclass(frozen=True)
class ClusterPlan:
    """Clusters: notes cluster and draw of every sample, 12 bytes each."""

    rules: ClusterBalance
    tree: Tree

    def look(self, table: pa.Table, passing: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Cluster and draw of the passing rows that have one."""
        clusters = _clusters(table)
        rows = np.flatnonzero(passing & (clusters >= 0))
        return clusters[rows], mixed(_uids(table.take(pa.array(rows))), self.rules.seed)

    def finish(self, parts: Iterable[Any]) -> ClusterThinning:
        """Quotas over the tree of clusters, and the last draw that each cluster takes."""
        noted = [(np.zeros(0, np.int32), np.zeros(0, np.uint64)), *parts]
        clusters, drawn = (np.concatenate(column) for column in zip(*noted, strict=True))
        counts = np.bincount(clusters, minlength=self.tree.num_clusters)
        quotas = cluster_quotas(counts, self.tree.parents, self.rules.num_samples)
        order = np.lexsort((drawn, clusters))
        first = np.cumsum(counts) - counts
        last = np.zeros(len(counts), np.uint64)
        last[quotas > 0] = drawn[order[(first + quotas - 1)[quotas > 0]]]
        return ClusterThinning(counts, quotas, last, self.rules.seed)


@dataclass(frozen=True)
class ClusterThinning:
    """Each cluster gives its quota: the samples with the smallest draws."""

    counts: Counts
    quotas: Counts
    last: npt.NDArray[np.uint64]  # draw of the last sample that a cluster gives
    seed: int

    def keeps(self, table: pa.Table) -> tuple[Mask, Probabilities]:
        """Rows whose draw is among the smallest of their cluster."""
        clusters = _clusters(table)
        place = np.maximum(clusters, 0)
        gives = (clusters >= 0) & (self.quotas[place] > 0)
        is_drawn = mixed(_uids(table), self.seed) <= self.last[place]
        shares = self.quotas / np.maximum(self.counts, 1)
        return gives & is_drawn, np.where(gives, shares[place], 0.0)


def _clusters(table: pa.Table) -> npt.NDArray[np.int32]:
    """Cluster of each row; -1 where it has none."""
    clusters: npt.NDArray[np.int32] = table["cluster"].fill_null(-1).to_numpy()
    return clusters


def _uids(table: pa.Table) -> npt.NDArray[np.uint64]:
    return pack_uids(table["uid"].to_pylist())
