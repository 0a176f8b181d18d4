"""The search for links of nodes (`linked`) by 256-bit hashes: its tables are cut into partitions of their keys too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming256 import Table, pairs_of_wide_table, plan_tables
from pairloom.pipelines.algorithms.hamming_pairs import partition_of
from pairloom.pipelines.dedupe.links.links import nodes_of
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack


@dataclass(frozen=True)
class WideSearchPlan:
    """How the hashes are cut: every table into several partitions of its keys; one task searches one of them."""

    radius: int
    tables: tuple[Table, ...]  # with radius 0 one is enough: it brings equal hashes together
    partitions_per_table: int

    colour_limit: None = None  # 256 bits link few images that are not confirmed: colours are not asked for

    @property
    def num_tasks(self) -> int:
        """One for each table and partition."""
        return len(self.tables) * self.partitions_per_table

    def hand_out(self, table: SpillTable, file: int, samples: Rows) -> None:
        """Hand the hashes of some samples, each with its node, to the tasks that search them: one of each table."""
        chosen = samples[samples["has_phash256"]]
        rows = np.unique(pack({"words": chosen["phash256"], "node": nodes_of(chosen)}))
        parts = [np.empty(0, np.int64)]
        for place, (word, mask) in enumerate(self.tables):
            keys = np.ascontiguousarray(rows["words"][:, word])
            parts.append(
                partition_of(keys, np.uint64(mask), self.partitions_per_table) + place * self.partitions_per_table
            )
        table.write(file, np.tile(rows, len(self.tables)), np.concatenate(parts))

    def links(self, table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
        """Pairs of nodes of near hashes, and of equal ones."""
        rows = np.unique(table.read(part))
        hashes, first, hash_of = np.unique(rows["words"], axis=0, return_index=True, return_inverse=True)
        nodes = rows["node"][first]
        left, right = pairs_of_wide_table(hashes, self.tables, part // self.partitions_per_table, self.radius)
        return np.concatenate([nodes[left], nodes[hash_of]]), np.concatenate([nodes[right], rows["node"]])


def plan_wide_search(num_hashes: int, radius: int, hashes_per_partition: int) -> WideSearchPlan:
    """`num_hashes` may be an upper bound."""
    tables = plan_tables(num_hashes, radius)
    return WideSearchPlan(
        radius, tuple(tables if radius else tables[:1]), max(1, -(-num_hashes // hashes_per_partition))
    )
