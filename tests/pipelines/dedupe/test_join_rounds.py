"""Rounds of tasks join links: the smallest node of a component is its root, for any split of the links."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pairloom.pipelines.algorithms.forest import forest, roots_of
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.dedupe.links.join_rounds import Join, join_links, write_links
from pairloom.pipelines.engine.shuffle import SpillTable, spread
from pairloom.schemas.storage import storage

SEED, NUM_NODES, NUM_SEARCHES = 7, 2000, 5
Edges = npt.NDArray[np.int64]


def chain(nodes: list[int]) -> Edges:
    return np.array(list(pairwise(nodes))).T


def edges_of(kind: str) -> Edges:
    generator = np.random.default_rng(SEED)
    odd, even = list(range(1, NUM_NODES, 2)), list(range(2, NUM_NODES, 2))
    return {
        "nothing": np.empty((2, 0), np.int64),
        "a star": np.array([[17] * NUM_NODES, range(NUM_NODES)]),
        "a chain": chain(list(range(NUM_NODES))),
        "a chain with one top": chain(odd + even[::-1]),
        "a shuffled chain": chain(generator.permutation(NUM_NODES).tolist()),
        "trees": generator.integers(0, NUM_NODES, (2, NUM_NODES // 2)),
        "a tangle": generator.integers(0, NUM_NODES, (2, 3 * NUM_NODES)),
    }[kind]


@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize(
    "kind", ["nothing", "a star", "a chain", "a chain with one top", "a shuffled chain", "trees", "a tangle"]
)
def test_every_node_finds_the_smallest_of_its_component(
    tmp_path: Path, ray_session: None, kind: str, num_parts: int
) -> None:
    """Each link is in another task, so that only the rounds join them; few rounds are needed."""
    edges = edges_of(kind)
    join = Join(str(tmp_path / "join"), NUM_SEARCHES, num_parts)
    for task in range(NUM_SEARCHES):
        left, right = edges[:, task::NUM_SEARCHES].astype(np.uint64)
        write_links(join, 0, task, forest(left, right))
    table = SpillTable(str(tmp_path / "roots"), num_parts, 3)
    largest = join_links(join, table)
    expected = connect(NUM_NODES, *edges)
    nodes = np.arange(NUM_NODES, dtype=np.uint64)
    parts = spread(nodes, 3)
    for part in range(3):
        mine = nodes[parts == part]
        links = table.read(part)
        assert len(np.unique(links["node"])) == len(links)
        assert roots_of(mine, links).tolist() == expected[parts == part].tolist()
    assert largest == np.bincount(expected).max()
    (last,) = storage.list_files(join.folder)
    assert int(storage.name_of(last)) <= 2 * log2(NUM_NODES)
