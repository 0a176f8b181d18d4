"""The search for near pairs of hashes, components and the greedy selection, compared with brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pairloom.pipelines.algorithms.captions import caption_hash
from pairloom.pipelines.algorithms.forest import forest, roots_of
from pairloom.pipelines.algorithms.hamming64 import HOT_BUCKET, pairs_of_hot, plan_groups
from pairloom.pipelines.algorithms.hamming_pairs import Pairs, as_pairs, even_distance, find_pairs
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.dedupe.criteria.exact import first_of_equals
from pairloom.pipelines.dedupe.criteria.greedy import Block, select_greedily
from pairloom.pipelines.dedupe.links.candidate_links import SearchPlan, plan_search
from pairloom.pipelines.dedupe.links.colour_bounds import (
    Colours,
    pairs_with_near_colours,
    report_colours,
    request_colours,
    write_colours,
)
from pairloom.pipelines.dedupe.summary import GIANT_GROUP, GroupSizes
from pairloom.pipelines.engine.shuffle import SpillTable, pack
from tests.support.dedupe_builder import hashes_with_neighbours

SEED = 7


# ---- the search for pairs of hashes


def brute_force(hashes: npt.NDArray[np.uint64], max_distance: int) -> set[tuple[int, int, int]]:
    left, right = np.triu_indices(len(hashes), 1)
    distance = np.bitwise_count(hashes[left] ^ hashes[right])
    near = distance <= max_distance
    return set(zip(left[near].tolist(), right[near].tolist(), distance[near].tolist(), strict=True))


def as_set(pairs: Pairs) -> set[tuple[int, int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["random", "skewed", "balanced"])
@pytest.mark.parametrize("max_distance", range(12))
def test_every_pair_within_the_radius_is_found_once(kind: str, max_distance: int) -> None:
    hashes = hashes_with_neighbours(kind)
    found = find_pairs(hashes, max_distance)
    assert len(found.left) == len(as_set(found))
    assert as_set(found) == brute_force(hashes, max_distance)


@pytest.mark.parametrize("num_planned_for", [10, 100_000, 100_000_000])
def test_a_search_in_parts_finds_the_same_pairs(tmp_path: Path, num_planned_for: int) -> None:
    """Hashes are in several files, some twice; each group of tables has three partitions."""
    hashes = hashes_with_neighbours("random")
    plan = SearchPlan(4, 0, tuple(plan_groups(num_planned_for, 4)), 3)
    table = SpillTable(str(tmp_path), 2, plan.num_tasks)
    plan.write_unique_hashes(table, 0, hashes[:2000])
    plan.write_unique_hashes(table, 1, hashes[1000:])
    found = [plan.links(table, part) for part in range(plan.num_tasks)]
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    pairs = as_pairs(hashes, left, right)
    assert len(pairs.left) == len(as_set(pairs))
    assert as_set(pairs) == brute_force(hashes, 4)


def samples_of(hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8]) -> Any:
    return pack({"phash": hashes, "has_phash": np.ones(len(hashes), bool), "thumbnail": thumbnails})


@pytest.mark.parametrize("max_difference", [0.0, 6.0, 12.0])
def test_only_hashes_whose_colours_may_agree_are_linked(tmp_path: Path, max_difference: float) -> None:
    """Colour bounds keep all pairs that the thumbnails confirm, and few others."""
    generator = np.random.default_rng(SEED)
    hashes = generator.choice(hashes_with_neighbours("random", 300), 600)
    tones = np.tile(generator.integers(0, 220, (20, 3)), 64)
    thumbnails = (tones[generator.integers(0, 20, 600)] + generator.integers(0, 16, (600, 192))).astype(np.uint8)
    plan = plan_search(len(hashes), 8, max_difference, 4_000_000)
    table = SpillTable(str(tmp_path / "hashes"), 2, plan.num_tasks)
    colours = Colours(str(tmp_path / "colours"), 2, plan.num_tasks, 3)
    for batch, rows in enumerate((slice(400), slice(300, 600))):
        samples = samples_of(hashes[rows], thumbnails[rows])
        plan.write_hashes(table, batch, samples)
        write_colours(colours, batch, samples)
    for task in range(plan.num_tasks):
        request_colours(colours, task, *plan.links(table, task))
    for part in range(3):
        report_colours(colours, part)
    links = [pairs_with_near_colours(colours, task, plan.colour_limit) for task in range(plan.num_tasks)]
    linked = {frozenset(pair) for left, right in links for pair in zip(left.tolist(), right.tolist(), strict=True)}
    is_near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 8
    apart = np.abs(thumbnails[:, None].astype(int) - thumbnails[None, :]).sum(axis=2)
    differ = hashes[:, None] != hashes[None, :]
    near, confirmed = (
        {frozenset((int(hashes[one]), int(hashes[other]))) for one, other in np.argwhere(differ & chosen)}
        for chosen in (is_near, is_near & (apart <= max_difference * 192))
    )
    assert confirmed <= linked <= near
    assert len(near) > 50
    assert len(linked) < len(near) / 2


def test_odd_radii_shrink_only_where_distances_are_even() -> None:
    assert even_distance(hashes_with_neighbours("balanced"), 3) == 2
    assert even_distance(hashes_with_neighbours("random"), 3) == 3


def test_more_hashes_get_wider_keys() -> None:
    sizes = (10**4, 10**7, 10**9)
    widths = [min((group.first | group.others[0]).bit_count() for group in plan_groups(num, 4)) for num in sizes]
    assert widths == sorted(widths)
    assert widths[-1] >= 24


@pytest.mark.parametrize("max_distance", [2, 4])
@pytest.mark.slow
def test_hot_buckets_are_split_and_lose_nothing(max_distance: int) -> None:
    """Hashes that differ in 24 of 64 bits only: a key over the other bits puts all into one bucket."""
    generator = np.random.default_rng(SEED)
    hashes = np.unique(generator.integers(0, 1 << 24, 3 * HOT_BUCKET, dtype=np.uint64) << np.uint64(20))
    left, right = pairs_of_hot(hashes, max_distance)
    found = set(zip(np.minimum(left, right).tolist(), np.maximum(left, right).tolist(), strict=True))
    assert len(left) == len(found)
    asked = generator.choice(hashes, 1000, replace=False)
    near = np.argwhere(np.bitwise_count(asked[:, None] ^ hashes[None, :]) <= max_distance)
    expected = {tuple(sorted((int(asked[one]), int(hashes[other])))) for one, other in near}
    of_asked = set(asked.tolist())
    assert {pair for pair in found if of_asked & set(pair)} == {pair for pair in expected if pair[0] != pair[1]}


# ---- components, exact


def test_roots_are_the_smallest_members_for_any_order_of_edges() -> None:
    left, right = np.array([5, 3, 8, 1]), np.array([3, 9, 2, 9])
    expected = [0, 1, 2, 1, 4, 1, 6, 7, 2, 1]
    assert connect(10, left, right).tolist() == expected
    assert connect(10, right[::-1].copy(), left[::-1].copy()).tolist() == expected


def test_forest_keeps_the_components_of_its_links() -> None:
    generator = np.random.default_rng(SEED)
    left, right = generator.integers(0, 300, (2, 200), dtype=np.uint64)
    rows = [forest(left[part::3], right[part::3]) for part in range(3)]
    joined = forest(*(np.concatenate([part[name] for part in rows]) for name in ("node", "root")))
    expected = connect(300, left.astype(np.int64), right.astype(np.int64))
    assert roots_of(np.arange(300, dtype=np.uint64), joined).tolist() == expected.tolist()


def test_giant_groups_are_flagged_and_the_largest_named() -> None:
    uids = np.array([[0, place] for place in range(30)], np.uint64)
    sizes = np.array([1] * 10 + [2] * 15 + [GIANT_GROUP - 1, GIANT_GROUP, 7, 5000, 0])
    told = (GroupSizes.of(uids[:20], sizes[:20]) + GroupSizes.of(uids[20:], sizes[20:])).as_details("largest_groups")
    assert (told["num_groups_of_several"], told["num_groups_giant"]) == (19, 2)
    named: Any = told["largest_groups"]
    assert [(int(group["uid"], 16), group["num_samples"]) for group in named[:4]] == [
        (28, 5000), (26, GIANT_GROUP), (25, GIANT_GROUP - 1), (27, 7)]  # fmt: skip
    assert [int(group["uid"], 16) for group in named[4:]] == list(range(10, 16))


def test_first_of_equals() -> None:
    hashes = np.array([[1, 2], [0, 9], [1, 2], [1, 3], [0, 9]], np.uint64)
    assert first_of_equals(hashes).tolist() == [0, 1, 0, 3, 1]


def test_captions_are_compared_without_case_spaces_and_compatibility_forms() -> None:
    assert caption_hash("A  Dog\n") == caption_hash("a dog") == caption_hash("\uff21 dog")
    assert caption_hash("a dog") != caption_hash("a dog.")


# ---- the greedy selection


def walk_by_brute_force(hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8], radius: int) -> Any:
    """Kept images and components, by brute force."""
    num = len(hashes)
    near = np.zeros((num, num), bool)
    for one in range(num):
        bits = np.bitwise_count(hashes[one] ^ hashes) <= radius
        colours = np.abs(thumbnails[one].astype(int) - thumbnails.astype(int)).sum(axis=1) <= 12 * 192
        near[one] = bits & colours
    kept: list[int] = []
    for one in range(num):
        if not any(near[one, other] for other in kept):
            kept.append(one)
    left, right = np.nonzero(near)
    return kept, connect(num, left, right), near


@pytest.mark.parametrize("radius", [0, 4, 10])
def test_walk_equals_brute_force(radius: int) -> None:
    generator = np.random.default_rng(SEED)
    pool = hashes_with_neighbours("random", 60)
    hashes = pool[generator.integers(0, len(pool), 400)]
    colours = generator.integers(0, 4, 400) * 9  # neighbours agree, others do not
    thumbnails = np.repeat(colours.astype(np.uint8)[:, None], 192, axis=1)
    values, hash_of = np.unique(hashes, return_inverse=True)
    pairs = find_pairs(values, radius)
    result = select_greedily(12.0, Block(hash_of, pairs, thumbnails))
    kept, roots, near = walk_by_brute_force(hashes, thumbnails, radius)
    assert np.flatnonzero(result.kept_instead < 0).tolist() == kept
    assert result.root.tolist() == roots.tolist()
    for dropped in np.flatnonzero(result.kept_instead >= 0):
        instead = int(result.kept_instead[dropped])
        assert near[dropped, instead]
        assert instead in kept
        assert result.distance[dropped] == np.bitwise_count(hashes[dropped] ^ hashes[instead])


def test_a_chain_keeps_both_ends() -> None:
    hashes = np.array([0b0000, 0b0011, 0b1111], np.uint64)  # distances 2, 2 and 4
    values, hash_of = np.unique(hashes, return_inverse=True)
    result = select_greedily(12.0, Block(hash_of, find_pairs(values, 2), np.zeros((3, 192), np.uint8)))
    assert result.kept_instead.tolist() == [-1, 0, -1]
    assert result.root.tolist() == [0, 0, 0]  # one group all the same: folds must not part them
