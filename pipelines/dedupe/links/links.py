"""Which samples may depend on each other: they are decided together, by one task.

Samples are linked by equal bytes or pixels, and by hashes within the radius whose images may have the same colours:
what can never be confirmed decides nothing (`colours`). Each sample stands for a *node*: its pHash, or its bytes where
it has none. Tasks find pairs of nodes, part by part, and hand on a spanning forest of what they found; the forests are
then joined (`joined`). A link too many costs time and changes no result, one too few would.

Every sample belongs to the part that its node's root falls into. A node without a link is its own root.
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

EQUAL_KEYS = ("received", "stored", "pixels")  # columns of `Slim` (halves of a hash): equal values make one image


@dataclass(frozen=True)
class SearchPlan:
    """How the hashes are cut: each group of tables into partitions of its keys; one task searches one of them."""

    radius: int  # 0: nothing to search for
    colour_limit: int  # sum of the differences of two thumbnails that agree
    groups: tuple[Group, ...]
    partitions_per_group: int

    @property
    def num_tasks(self) -> int:
        """One for each group and partition."""
        return len(self.groups) * self.partitions_per_group

    def hand_out(self, table: SpillTable, file: int, samples: Rows) -> None:
        """Hand the hashes of some samples to the tasks that search them."""
        self.hand_out_hashes(table, file, unique_sorted(samples["phash"][samples["has_phash"]]))

    def links(self, table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
        """Near pairs that this part of the search is to find; their colours may differ."""
        return pairs_of_group(table.read(part), self.groups[part // self.partitions_per_group], self.radius)

    def hand_out_hashes(self, table: SpillTable, file: int, hashes: Hashes) -> None:
        """Hand distinct hashes to the tasks that search them: one of each group."""
        parts = [
            partition_of(hashes, np.uint64(group.first), self.partitions_per_group) + place * self.partitions_per_group
            for place, group in enumerate(self.groups)
        ]
        table.write(file, np.tile(hashes, len(parts)), np.concatenate([np.empty(0, np.int64), *parts]))


def plan_search(num_hashes: int, radius: int, max_colour_difference: float, hashes_per_partition: int) -> SearchPlan:
    """`num_hashes` may be an upper bound."""
    groups = tuple(plan_groups(num_hashes, radius)) if radius else ()
    limit = int(max_colour_difference * THUMBNAIL_BYTES)
    return SearchPlan(radius, limit, groups, max(1, -(-num_hashes // hashes_per_partition)))


def nodes_of(samples: Rows) -> Hashes:
    """The node that each sample (record of `Slim`) stands for. Bytes that look like a pHash make one link too many."""
    return np.where(samples["has_phash"], samples["phash"], samples["received"][:, 0])


def key_rows(samples: Rows) -> Rows:
    """The hashes of the samples' bytes, each with the node of its sample."""
    nodes = nodes_of(samples)
    keys = np.concatenate([samples[name][:, 0] for name in EQUAL_KEYS])
    return np.unique(pack({"key": keys, "node": np.tile(nodes, len(EQUAL_KEYS))}))


def equal_part(table: SpillTable, part: int) -> tuple[Hashes, Hashes]:
    """Pairs of different nodes whose samples have equal bytes. There are few: equal images look alike."""
    rows = np.sort(table.read(part))
    linked = (rows["key"][1:] == rows["key"][:-1]) & (rows["node"][1:] != rows["node"][:-1])
    return rows["node"][:-1][linked], rows["node"][1:][linked]


def part_of(nodes: npt.NDArray[np.uint64], links: Rows, num_parts: int) -> npt.NDArray[np.int64]:
    """The part that decides about the samples of each node."""
    return spread(roots_of(nodes, links), num_parts)
