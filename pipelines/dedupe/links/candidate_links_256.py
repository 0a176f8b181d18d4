"""The search for candidate links by 256-bit hashes, split into partitions of the keys of its tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming256 import Table, pairs_of_table256, plan_tables
from pairloom.pipelines.algorithms.hamming_pairs import partition_of
from pairloom.pipelines.dedupe.links.candidate_links import nodes_of
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack


@dataclass(frozen=True)
class SearchPlan256:
    """The split of the search: partitions of the keys of each table; one task per partition."""

    radius: int
    tables: tuple[Table, ...]  # with radius 0, one table finds all equal hashes
    partitions_per_table: int

    colour_limit: None = None  # colours are not compared: nearly all pairs of 256 bits are confirmed later

    @property
    def num_tasks(self) -> int:
        """One per table and partition."""
        return len(self.tables) * self.partitions_per_table

    def write_hashes(self, table: SpillTable, file: int, samples: Rows) -> None:
        """Write the hashes of samples with their nodes for the tasks that search them, one per table."""
        chosen = samples[samples["has_phash256"]]
        rows = np.unique(pack({"words": chosen["phash256"], "node": nodes_of(chosen)}))
        parts = [np.empty(0, np.int64)]
        for index, (word, mask) in enumerate(self.tables):
            keys = np.ascontiguousarray(rows["words"][:, word])
            parts.append(
                partition_of(keys, np.uint64(mask), self.partitions_per_table) + index * self.partitions_per_table
            )
        table.write(file, np.tile(rows, len(self.tables)), np.concatenate(parts))

    def links(self, table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
        """Pairs of nodes with near or equal hashes."""
        rows = np.unique(table.read(part))
        hashes, first, hash_of = np.unique(rows["words"], axis=0, return_index=True, return_inverse=True)
        nodes = rows["node"][first]
        left, right = pairs_of_table256(hashes, self.tables, part // self.partitions_per_table, self.radius)
        return np.concatenate([nodes[left], nodes[hash_of]]), np.concatenate([nodes[right], rows["node"]])


def plan_search256(num_hashes: int, radius: int, hashes_per_partition: int) -> SearchPlan256:
    """The plan of the search; `num_hashes` may be an upper bound."""
    tables = plan_tables(num_hashes, radius)
    return SearchPlan256(
        radius, tuple(tables if radius else tables[:1]), max(1, -(-num_hashes // hashes_per_partition))
    )
