"""Candidate links between samples: linked samples may depend on each other, so that one task decides them together.

Links are equal bytes or pixels, and hashes within the radius whose images may have near colours (colour_bounds.py).
Each sample has a *node*: its pHash, or a hash of its bytes without one. Tasks find pairs of nodes, part by part, and
write a spanning forest of them; join_rounds.py joins the forests. A superfluous link costs time and changes no result;
a missing link would change it.

A sample belongs to the part of its node's root. A node without a link is its own root.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.forest import roots_of
from pairloom.pipelines.algorithms.hamming64 import Group, Hashes, pairs_of_group, plan_groups
from pairloom.pipelines.algorithms.hamming_pairs import partition_of
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted
from pairloom.pipelines.dedupe.sample_records import THUMBNAIL_BYTES
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread

EQUAL_KEYS = ("received", "stored", "pixels")  # columns of `SampleRecords`: equal values make one image


@dataclass(frozen=True)
class SearchPlan:
    """The split of the search: partitions of the keys of each group of tables; one task per partition."""

    radius: int  # bits; 0: no search
    colour_limit: int  # largest sum of absolute differences of two agreeing thumbnails
    groups: tuple[Group, ...]
    partitions_per_group: int

    @property
    def num_tasks(self) -> int:
        """One per group and partition."""
        return len(self.groups) * self.partitions_per_group

    def write_hashes(self, table: SpillTable, file: int, samples: Rows) -> None:
        """Write the hashes of samples for the tasks that search them."""
        self.write_unique_hashes(table, file, unique_sorted(samples["phash"][samples["has_phash"]]))

    def links(self, table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
        """Near pairs of one part of the search, before colours are compared."""
        return pairs_of_group(table.read(part), self.groups[part // self.partitions_per_group], self.radius)

    def write_unique_hashes(self, table: SpillTable, file: int, hashes: Hashes) -> None:
        """Write unique hashes for the tasks that search them, one per group."""
        parts = [
            partition_of(hashes, np.uint64(group.first), self.partitions_per_group) + index * self.partitions_per_group
            for index, group in enumerate(self.groups)
        ]
        table.write(file, np.tile(hashes, len(parts)), np.concatenate([np.empty(0, np.int64), *parts]))


def plan_search(num_hashes: int, radius: int, max_colour_difference: float, hashes_per_partition: int) -> SearchPlan:
    """The plan of the search; `num_hashes` may be an upper bound."""
    groups = tuple(plan_groups(num_hashes, radius)) if radius else ()
    limit = int(max_colour_difference * THUMBNAIL_BYTES)
    return SearchPlan(radius, limit, groups, max(1, -(-num_hashes // hashes_per_partition)))


def nodes_of(samples: Rows) -> Hashes:
    """The node of each sample (`SampleRecords` row). A byte hash equal to a pHash only adds a superfluous link."""
    return np.where(samples["has_phash"], samples["phash"], samples["received"][:, 0])


def key_rows(samples: Rows) -> Rows:
    """The unique hashes of bytes and pixels, with the nodes of their samples."""
    nodes = nodes_of(samples)
    keys = np.concatenate([samples[name][:, 0] for name in EQUAL_KEYS])
    return np.unique(pack({"key": keys, "node": np.tile(nodes, len(EQUAL_KEYS))}))


def equal_part(table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
    """Pairs of different nodes with samples of equal bytes or pixels; few, because their pHashes are mostly equal."""
    rows = np.sort(table.read(part))
    is_link = (rows["key"][1:] == rows["key"][:-1]) & (rows["node"][1:] != rows["node"][:-1])
    return rows["node"][:-1][is_link], rows["node"][1:][is_link]


def part_of(nodes: npt.NDArray[np.uint64], links: Rows, num_parts: int) -> npt.NDArray[np.int64]:
    """The part that decides the samples of each node."""
    return spread(roots_of(nodes, links), num_parts)
