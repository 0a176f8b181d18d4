"""The search for near pairs of 256-bit hashes, compared with brute force, in one process and in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pairloom.pipelines.algorithms.forest import forest, roots_of
from pairloom.pipelines.algorithms.hamming256 import HOT_BUCKET, find_pairs256, pairs_of_table256, plan_tables
from pairloom.pipelines.algorithms.hamming_pairs import Pairs
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.dedupe.criteria.greedy import Block, select_greedily
from pairloom.pipelines.dedupe.links.candidate_links_256 import plan_search256
from pairloom.pipelines.engine.shuffle import SpillTable, pack
from tests.support.dedupe_builder import SEED

Wide = npt.NDArray[np.uint64]


def wide_hashes(kind: str, num: int = 1200) -> Wide:
    """Hashes and copies with up to 16 bits flipped; `skewed`: most bits are zero, and a third have two equal words."""
    generator = np.random.default_rng(SEED)
    rows = generator.random((num, 256)) < {"random": 0.5, "skewed": 0.04}[kind]
    if kind == "skewed":
        rows[::3, :128] = False
    copies = rows[generator.integers(0, num, num)].copy()
    for row in copies:
        row[generator.choice(256, generator.integers(0, 17), replace=False)] ^= True
    packed = np.packbits(np.concatenate([rows, copies]), axis=1).view(">u8").astype(np.uint64)
    return np.unique(packed, axis=0)


def distances(hashes: Wide) -> npt.NDArray[np.int64]:
    return np.array([np.bitwise_count(hashes ^ one).sum(axis=1) for one in hashes], np.int64)


def as_set(pairs: Pairs) -> set[tuple[int, int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["random", "skewed"])
def test_every_wide_pair_within_the_radius_is_found_once(kind: str) -> None:
    hashes = wide_hashes(kind)
    distance = distances(hashes)
    for radius in range(12):
        found = find_pairs256(hashes, radius)
        expected = np.argwhere(np.triu(distance <= radius, 1))
        assert len(found.left) == len(expected) == len(as_set(found)), radius
        assert as_set(found) == {(int(a), int(b), int(distance[a, b])) for a, b in expected}, radius


@pytest.mark.parametrize("radius", [3, 8, 11])
def test_hot_buckets_of_wide_hashes_lose_nothing(radius: int) -> None:
    """Two words are equal in all hashes, as in those of flat images."""
    generator = np.random.default_rng(SEED)
    hashes = np.zeros((HOT_BUCKET + 500, 4), np.uint64)
    hashes[:, 2:] = generator.integers(0, 2**64, (len(hashes), 2), dtype=np.uint64)
    hashes[1::2, 2:] = hashes[::2, 2:] ^ (np.uint64(1) << generator.integers(0, 64, (len(hashes) // 2, 2), np.uint64))
    hashes = np.unique(hashes, axis=0)
    tables = plan_tables(len(hashes), radius)
    found = [pairs_of_table256(hashes, tables, table, radius) for table in range(len(tables))]
    pairs = [tuple(sorted(pair)) for left, right in found for pair in zip(left.tolist(), right.tolist(), strict=True)]
    expected = [tuple(pair) for pair in np.argwhere(np.triu(distances(hashes) <= radius, 1)).tolist()]
    assert len(expected) > HOT_BUCKET // 3
    assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize("radius", [0, 6])
def test_links_of_wide_hashes_keep_near_nodes_together(tmp_path: Path, radius: int) -> None:
    hashes = wide_hashes("random")
    nodes = np.arange(len(hashes), dtype=np.uint64)
    twins = np.arange(0, len(hashes), 5)  # the same 256 bits under another 64-bit hash
    samples = pack(
        {
            "phash256": np.concatenate([hashes, hashes[twins]]),
            "has_phash256": np.ones(len(hashes) + len(twins), bool),
            "phash": np.concatenate([nodes, np.uint64(100_000) + nodes[twins]]),
            "has_phash": np.ones(len(hashes) + len(twins), bool),
            "received": np.zeros((len(hashes) + len(twins), 2), np.uint64),
        }
    )
    plan = plan_search256(len(samples), radius, hashes_per_partition=500)
    assert plan.partitions_per_table > 1
    table = SpillTable(str(tmp_path), 2, plan.num_tasks)
    plan.write_hashes(table, 0, samples[:900])
    plan.write_hashes(table, 1, samples[800:])
    links = [plan.links(table, part) for part in range(plan.num_tasks)]
    roots = roots_of(nodes, forest(*(np.concatenate(side) for side in zip(*links, strict=True))))
    assert roots.tolist() == connect(len(hashes), *np.nonzero(distances(hashes) <= radius)).tolist()
    all_links = forest(*(np.concatenate(side) for side in zip(*links, strict=True)))
    assert roots_of(np.uint64(100_000) + nodes[twins], all_links).tolist() == roots[twins].tolist()


def test_256_bits_confirm_a_wide_radius(tmp_path: Path) -> None:
    """Of pairs within 8 of 64 bits and with equal colours, only those near in 256 bits are duplicates."""
    hash_of, pairs = np.array([0, 1, 2]), Pairs(np.array([0, 0]), np.array([1, 2]), np.array([8, 6], np.int32))
    hashes256 = np.zeros((3, 4), np.uint64)
    hashes256[1], hashes256[2] = 0xFFFF, 0xFF
    block = Block(hash_of, pairs, np.zeros((3, 192), np.uint8), hashes256)
    assert select_greedily(12.0, block).kept_instead.tolist() == [-1, 0, 0]
    result = select_greedily(12.0, block, 40)
    assert result.kept_instead.tolist() == [-1, -1, 0]
    assert result.root.tolist() == [0, 1, 0]
