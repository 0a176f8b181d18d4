"""Dedupe: the pair search misses nothing, the greedy walk follows the keep policy, real copies are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipelines.dedupe.buckets import HOT_BUCKET, pairs_of_table, plan_masks
from pipelines.dedupe.components import connect
from pipelines.dedupe.decontaminate import near_any
from pipelines.dedupe.dedupe import dedupe
from pipelines.dedupe.exact import first_of_equals
from pipelines.dedupe.greedy import Block, walk
from pipelines.dedupe.kmeans import normalised
from pipelines.dedupe.perceptual import Pairs, cut, even_distance, find_pairs, join_pairs, search
from pipelines.dedupe.semantic import decide_cluster
from pipelines.dedupe.slim import caption_hash
from schemas.curate_recipe import CurateRecipe
from schemas.drop_reason import DropReason
from schemas.manifest import Manifest, ShardEntry, load_manifest, save_manifest, table_url
from schemas.sample import make_uid, read_table, write_table
from tests.raw_builder import Pair, build_raw, encoded, photograph, photographs

SEED = 7


def recipe_for(root: Path, **settings: Any) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {"root": str(root), "source": {"kind": "folder", "path": "unused"}, "dedupe": settings}
    )


def decisions_of(folder: str) -> dict[str, dict[str, Any]]:
    rows = [
        row for shard in load_manifest(folder).shards for row in read_table(table_url(folder, shard.name)).to_pylist()
    ]
    return {row["uid"]: row for row in rows}


def uid_of(pair: Pair) -> str:
    return make_uid(pair.url, pair.caption)


# ---- the search for pairs of hashes


def brute_force(hashes: npt.NDArray[np.uint64], max_distance: int) -> set[tuple[int, int, int]]:
    left, right = np.triu_indices(len(hashes), 1)
    distance = np.bitwise_count(hashes[left] ^ hashes[right])
    near = distance <= max_distance
    return set(zip(left[near].tolist(), right[near].tolist(), distance[near].tolist(), strict=True))


def as_set(pairs: Pairs) -> set[tuple[int, int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True))


def hashes_with_neighbours(kind: str, num: int = 1500) -> npt.NDArray[np.uint64]:
    """Random hashes and copies with up to 14 bits flipped; `skewed`: most bits are zero, so buckets are hot;
    `balanced`: exactly 32 ones, as the median of all 64 gives."""
    generator = np.random.default_rng(SEED)
    density = {"random": 0.5, "skewed": 0.08, "balanced": 0.5}[kind]
    bits = generator.random((num, 64)) < density
    copies = bits[generator.integers(0, num, num)].copy()
    for row in copies:
        row[generator.choice(64, generator.integers(0, 15), replace=False)] ^= True
    bits = np.concatenate([bits, copies])
    if kind == "balanced":
        bits = np.argsort(np.argsort(bits + generator.random(bits.shape) * 0.5, axis=1), axis=1) >= 32
    packed = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    return np.unique(packed)


@pytest.mark.parametrize("kind", ["random", "skewed", "balanced"])
@pytest.mark.parametrize("max_distance", range(12))
def test_every_pair_within_the_radius_is_found_once(kind: str, max_distance: int) -> None:
    hashes = hashes_with_neighbours(kind)
    found = find_pairs(hashes, max_distance)
    assert len(found.left) == len(as_set(found))
    assert as_set(found) == brute_force(hashes, max_distance)


@pytest.mark.parametrize("num_planned_for", [10, 100_000, 100_000_000])
def test_plans_for_any_size_find_the_same_pairs(num_planned_for: int) -> None:
    hashes = hashes_with_neighbours("random")
    masks = plan_masks(num_planned_for, 4)
    parts = [search(hashes, masks, 4, part) for part in cut(40_000_000, len(masks))]
    assert len(parts) > 1
    assert as_set(join_pairs(parts)) == brute_force(hashes, 4)


def test_odd_radii_shrink_only_where_distances_are_even() -> None:
    assert even_distance(hashes_with_neighbours("balanced"), 3) == 2
    assert even_distance(hashes_with_neighbours("random"), 3) == 3


def test_more_hashes_get_wider_keys() -> None:
    widths = [min(mask.bit_count() for mask in plan_masks(num, 4)) for num in (10**4, 10**7, 10**9)]
    assert widths == sorted(widths)
    assert widths[-1] >= 24


@pytest.mark.parametrize("max_distance", [2, 4])
def test_hot_buckets_are_split_and_lose_nothing(max_distance: int) -> None:
    """Hashes that differ in 24 of 64 bits only: every key over the other bits is one bucket of them all."""
    generator = np.random.default_rng(SEED)
    hashes = np.unique(generator.integers(0, 1 << 24, 3 * HOT_BUCKET, dtype=np.uint64) << np.uint64(20))
    left, right = pairs_of_table(hashes, 0xFFFFF, max_distance)
    found = set(zip(np.minimum(left, right).tolist(), np.maximum(left, right).tolist(), strict=True))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = np.argwhere(np.triu(distance <= max_distance, 1))
    assert len(left) == len(found) == len(expected)
    assert found == {(int(hashes[one]), int(hashes[other])) for one, other in expected}


# ---- components, exact


def test_roots_are_the_smallest_members_for_any_order_of_edges() -> None:
    left, right = np.array([5, 3, 8, 1]), np.array([3, 9, 2, 9])
    expected = [0, 1, 2, 1, 4, 1, 6, 7, 2, 1]
    assert connect(10, left, right).tolist() == expected
    assert connect(10, right[::-1].copy(), left[::-1].copy()).tolist() == expected


def test_first_of_equals() -> None:
    hashes = np.array([[1, 2], [0, 9], [1, 2], [1, 3], [0, 9]], np.uint64)
    assert first_of_equals(hashes).tolist() == [0, 1, 0, 3, 1]


def test_captions_are_compared_without_case_spaces_and_compatibility_forms() -> None:
    assert caption_hash("A  Dog\n") == caption_hash("a dog") == caption_hash("\uff21 dog")
    assert caption_hash("a dog") != caption_hash("a dog.")


# ---- the greedy walk


def walk_by_brute_force(hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8], radius: int) -> Any:
    """Kept images, and components as sets, by comparing everything with everything."""
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
    walked = walk(12.0, Block(hash_of, pairs, thumbnails))
    kept, roots, near = walk_by_brute_force(hashes, thumbnails, radius)
    assert np.flatnonzero(walked.kept_instead < 0).tolist() == kept
    assert walked.root.tolist() == roots.tolist()
    for dropped in np.flatnonzero(walked.kept_instead >= 0):
        instead = int(walked.kept_instead[dropped])
        assert near[dropped, instead]
        assert instead in kept
        assert walked.distance[dropped] == np.bitwise_count(hashes[dropped] ^ hashes[instead])


def test_a_chain_keeps_both_ends() -> None:
    hashes = np.array([0b0000, 0b0011, 0b1111], np.uint64)  # distances 2, 2 and 4
    values, hash_of = np.unique(hashes, return_inverse=True)
    walked = walk(12.0, Block(hash_of, find_pairs(values, 2), np.zeros((3, 192), np.uint8)))
    assert walked.kept_instead.tolist() == [-1, 0, -1]
    assert walked.root.tolist() == [0, 0, 0]  # one group all the same: folds must not part them


# ---- semantic


def semantic_by_brute_force(
    features: npt.NDArray[np.float32], centroid: npt.NDArray[np.float32], threshold: float, policy: str
) -> list[int]:
    """Which images of a cluster stay, straight from the policies' definitions; features are in keep order."""
    near = features @ features.T > threshold
    num = len(features)
    if policy == "components":
        left, right = np.nonzero(near)
        return sorted(set(connect(num, left, right).tolist()))
    order = np.argsort(features @ centroid, kind="stable").tolist() if policy == "official" else list(range(num))
    kept: list[int] = []
    for place, image in enumerate(order):
        rivals = order[:place] if policy == "official" else kept
        if not any(near[image, rival] for rival in rivals):
            kept.append(image)
    return sorted(kept)


def chained_features(num: int = 2500, width: int = 16) -> npt.NDArray[np.float32]:
    """Unit features in tight and loose bunches, with chains."""
    generator = np.random.default_rng(SEED)
    centres = generator.standard_normal((num // 6, width))
    rows = centres[generator.integers(0, len(centres), num)] + 0.15 * generator.standard_normal((num, width))
    return normalised(rows)


@pytest.mark.parametrize("policy", ["official", "greedy", "components"])
def test_semantic_policies_equal_their_definitions(policy: str) -> None:
    features = chained_features()
    centroid = normalised(features.mean(axis=0, keepdims=True))[0]
    instead = decide_cluster(features, centroid, 0.97, policy)
    kept = np.flatnonzero(instead < 0)
    assert kept.tolist() == semantic_by_brute_force(features, centroid, 0.97, policy)
    assert len(features) / 10 < len(kept) < len(features)
    dropped = np.flatnonzero(instead >= 0)
    assert (instead[instead[dropped]] < 0).all()  # a kept one is named
    if policy == "greedy":
        assert ((features[dropped] * features[instead[dropped]]).sum(axis=1) > 0.97 - 1e-6).all()


def clip_folder(root: Path, raw: str, feature_of: dict[str, npt.NDArray[np.float32]]) -> str:
    """A clip signal of given features: the columns and files that `measure_signal` writes."""
    folder, shards = str(root / "signals/tiny/0"), load_manifest(raw).shards
    for shard in shards:
        uids = read_table(table_url(raw, shard.name), ["uid"])["uid"].to_pylist()
        scores = pa.array([0.3] * len(uids), pa.float32())
        write_table(table_url(folder, shard.name), pa.table({"uid": uids, "clip_score": scores}))
        rows = np.stack([feature_of[uid] for uid in uids]).astype(np.float16)
        np.save(Path(folder) / f"{shard.name}.image_features.npy", rows)
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_rows, 0) for shard in shards]
    save_manifest(folder, Manifest("tiny", "signals", "0", [], entries))
    return folder


def test_semantic_duplicates_go_whatever_the_order_of_the_shards(tmp_path: Path, ray_session: None) -> None:
    pairs = photographs(24)
    generator = np.random.default_rng(SEED)
    bunches = generator.standard_normal((8, 32))
    feature_of = {
        uid_of(pair): normalised(bunches[place % 8 : place % 8 + 1] + 0.01 * generator.standard_normal((1, 32)))[0]
        for place, pair in enumerate(pairs)
    }
    results = []
    for name, order, rows in (("one", list(range(24)), 5), ("other", generator.permutation(24).tolist(), 7)):
        root = tmp_path / name
        raw = build_raw(root, [pairs[place] for place in order], rows)
        recipe = CurateRecipe.model_validate(
            {
                "root": str(root),
                "source": {"kind": "folder", "path": "unused"},
                "signals": [{"kind": "clip", "name": "tiny", "model": "unused"}],
                "dedupe": {"semantic": {"features": "tiny", "num_clusters": 2}, "keep": "smallest_uid"},
            }
        )
        results.append(decisions_of(dedupe(recipe, raw, {"tiny": clip_folder(root, raw, feature_of)})))
    assert results[0] == results[1]
    for bunch in range(8):
        uids = sorted(uid_of(pairs[place]) for place in range(bunch, 24, 8))
        rows = [results[0][uid] for uid in uids]
        assert [row["drop_reason"] for row in rows] == [None, "semantic_duplicate", "semantic_duplicate"]
        assert [row["duplicate_of"] for row in rows] == [None, uids[0], uids[0]]
        assert {row["duplicate_group"] for row in rows} == {uids[0]}


def test_preferred_licences_are_kept_before_larger_copies(tmp_path: Path, ray_session: None) -> None:
    pairs = [
        Pair(encoded(photograph(2, *size)), name, f"http://a.test/{name}")
        for name, size in {"small": (96, 72), "large": (192, 144), "middle": (128, 96)}.items()
    ]
    raw = build_raw(tmp_path, pairs)
    url = table_url(raw, load_manifest(raw).shards[0].name)
    write_table(url, read_table(url).append_column("license", pa.array(["cc-by", None, "cc0"])))
    for order, kept in ((["cc0", "cc-by"], 2), (["cc-by"], 0), (["public"], 1)):
        recipe = CurateRecipe.model_validate(
            {
                "root": str(tmp_path),
                "source": {"kind": "folder", "path": "unused", "keep_columns": ["license"]},
                "dedupe": {"prefer": {"column": "license", "order": order}},
            }
        )
        decisions = decisions_of(dedupe(recipe, raw, {}))
        assert [uid for uid, row in decisions.items() if row["drop_reason"] is None] == [uid_of(pairs[kept])]


# ---- incremental


def test_a_new_batch_gives_way_to_an_earlier_one_whose_images_are_gone(tmp_path: Path, ray_session: None) -> None:
    old_pairs = photographs(5)
    old = build_raw(tmp_path, old_pairs, 2, name="old")
    for tar in Path(old).rglob("*.tar"):
        tar.unlink()
    pairs = [
        Pair(old_pairs[0].image, old_pairs[0].caption, "http://b.test/0.jpg"),  # same bytes, same caption
        Pair(old_pairs[1].image, "another caption", "http://b.test/1.jpg"),
        Pair(encoded(photograph(2, 192, 144)), "larger", "http://b.test/2.jpg"),  # near, and larger than the old one
        Pair(encoded(photograph(60)), "new", "http://b.test/3.jpg"),
        Pair(encoded(photograph(60), quality=70), "new again", "http://b.test/4.jpg"),
    ]
    raw = build_raw(tmp_path, pairs, 2)
    folder = dedupe(recipe_for(tmp_path, against=[str(tmp_path / "raw/old")]), raw, {})
    decisions = decisions_of(folder)
    assert set(decisions) == {uid_of(pair) for pair in pairs}  # nothing is written about the old ones
    rows = [decisions[uid_of(pair)] for pair in pairs]
    kept, dropped = sorted([uid_of(pairs[3]), uid_of(pairs[4])])
    assert [row["drop_reason"] for row in rows[:3]] == ["exact_duplicate", None, "perceptual_duplicate"]
    assert [rows[0]["duplicate_of"], rows[2]["duplicate_of"]] == [uid_of(old_pairs[0]), uid_of(old_pairs[2])]
    assert (decisions[kept]["drop_reason"], decisions[dropped]["duplicate_of"]) == (None, kept)
    assert load_manifest(folder).drop_counts == {"exact_duplicate": 1, "perceptual_duplicate": 2}
    assert load_manifest(folder).num_samples == 2


# ---- placeholders


def test_placeholders_go_whole_and_popular_photographs_stay(tmp_path: Path, ray_session: None) -> None:
    things = ["an oak table", "red shoes, size 9", "Paris by night", "buy tickets now", "Dr. Miller", "lemon cake"]
    popular = [f"Acme X{number} camera, black, with lens" for number in range(6)]
    missing, camera, local = encoded(photograph(50)), encoded(photograph(51)), encoded(photograph(52))
    pairs = [Pair(missing, text, f"http://www.shop{place}.test/1.jpg") for place, text in enumerate(things)]
    pairs += [Pair(camera, text, f"http://shop{place}.test/2.jpg") for place, text in enumerate(popular)]
    pairs += [Pair(local, text, f"http://one.test/{place}.jpg") for place, text in enumerate(things)]
    raw = build_raw(tmp_path, pairs, 7)
    rule = {"min_captions": 5, "min_domains": 5}
    decisions = decisions_of(dedupe(recipe_for(tmp_path, placeholders=rule), raw, {}))
    assert [decisions[uid_of(pair)]["drop_reason"] for pair in pairs] == ["placeholder"] * 6 + [None] * 12
    assert {decisions[uid_of(pair)]["duplicate_of"] for pair in pairs} == {None}
    untouched = decisions_of(dedupe(recipe_for(tmp_path, name="off"), raw, {}))
    assert {row["drop_reason"] for row in untouched.values()} == {None}


# ---- decontamination


@pytest.mark.parametrize("radius", [0, 1, 3, 6, 11])
def test_lookup_in_an_evaluation_set_equals_brute_force(radius: int) -> None:
    hashes = hashes_with_neighbours("random")
    others, asked = hashes[::7].copy(), hashes[1::2].copy()
    expected = (np.bitwise_count(asked[:, None] ^ others[None, :]) <= radius).any(axis=1)
    assert near_any(asked, others, radius).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["images", "tars", "raw"])
def test_images_of_an_evaluation_set_leave(tmp_path: Path, ray_session: None, kind: str) -> None:
    """Recompressed and resized copies of evaluation images go with all captions; pictures like no other stay."""
    pairs = photographs(6)
    pairs += [
        Pair(encoded(photograph(40), quality=70), f"copy {number}", f"http://e.test/{number}") for number in (1, 2)
    ]
    pairs.append(Pair(encoded(photograph(41, 192, 144)), "large copy", "http://e.test/3"))
    evaluation = [
        Pair(encoded(photograph(seed)), f"evaluation {seed}", f"http://e.test/{seed}") for seed in (40, 41, 42)
    ]
    folder = tmp_path / "evaluation"
    path = build_raw(folder, evaluation)
    if kind == "images":
        path = str(folder / "images")
        Path(path).mkdir()
        for number, pair in enumerate(evaluation):
            assert isinstance(pair.image, bytes)
            (Path(path) / f"{number}.jpg").write_bytes(pair.image)
    elif kind == "tars":
        path = f"{path}/0000/*.tar"
    result = dedupe(recipe_for(tmp_path, decontaminate=[{"path": path}]), build_raw(tmp_path, pairs), {})
    reasons = [decisions_of(result)[uid_of(pair)]["drop_reason"] for pair in pairs]
    assert reasons == [None] * 6 + ["contaminated"] * 3
    assert decisions_of(result)[uid_of(pairs[-1])]["duplicate_of"] is None
    report: Any = load_manifest(result).details["contamination"]
    assert (report[0]["num_evaluation_images"], report[0]["num_evaluation_images_hit"]) == (3, 2)
    assert (report[0]["num_images_hit"], report[0]["num_samples_hit"]) == (2, 3)


# ---- the step


def test_exact_copies_go_and_other_captions_stay(tmp_path: Path, ray_session: None) -> None:
    image = encoded(photograph(1))
    pairs = [
        Pair(image, "a red blob", "http://a.test/1.jpg"),
        Pair(image, "A red  blob", "http://b.test/1.jpg"),
        Pair(image, "something else", "http://c.test/1.jpg"),
        Pair(DropReason.HTTP_NOT_FOUND, "gone", "http://d.test/1.jpg"),
        *photographs(0),
    ]
    raw = build_raw(tmp_path, pairs, samples_per_shard=2)
    folder = dedupe(recipe_for(tmp_path), raw, {})
    decisions = decisions_of(folder)
    twins = sorted([uid_of(pairs[0]), uid_of(pairs[1])])
    assert decisions[twins[0]]["drop_reason"] is None
    assert decisions[twins[1]]["drop_reason"] == "exact_duplicate"
    assert decisions[twins[1]]["duplicate_of"] == twins[0]
    assert decisions[uid_of(pairs[2])]["drop_reason"] is None
    assert decisions[uid_of(pairs[3])]["duplicate_group"] is None
    assert len({decisions[uid_of(pair)]["duplicate_group"] for pair in pairs[:3]}) == 1
    assert load_manifest(folder).drop_counts == {"exact_duplicate": 1}

    one = decisions_of(dedupe(recipe_for(tmp_path, name="one", same_image_captions="keep_one"), raw, {}))
    kept = [uid for uid in (uid_of(pair) for pair in pairs[:3]) if one[uid]["drop_reason"] is None]
    assert kept == [min(uid_of(pair) for pair in pairs[:3])]
    assert {row["duplicate_of"] for row in one.values() if row["drop_reason"]} == set(kept)


def test_the_largest_copy_stays_and_takes_all_captions_of_the_others_away(tmp_path: Path, ray_session: None) -> None:
    large, small = encoded(photograph(2, 192, 144)), encoded(photograph(2))
    pairs = [
        Pair(small, "first", "http://a.test/s1.jpg"),
        Pair(small, "second", "http://a.test/s2.jpg"),
        Pair(large, "large", "http://a.test/l.jpg"),
        Pair(encoded(255 - photograph(2)), "other colours", "http://a.test/o.jpg"),
    ]
    folder = dedupe(recipe_for(tmp_path), build_raw(tmp_path, pairs), {})
    decisions = decisions_of(folder)
    assert [decisions[uid_of(pair)]["drop_reason"] for pair in pairs] == [
        "perceptual_duplicate", "perceptual_duplicate", None, None]  # fmt: skip
    assert decisions[uid_of(pairs[0])]["duplicate_of"] == uid_of(pairs[2])
    assert decisions[uid_of(pairs[0])]["distance"] <= 4


def test_keep_policies(tmp_path: Path, ray_session: None) -> None:
    """Three copies of one picture: the largest, the best scored, or the smallest uid stays."""
    sizes = {"small": (96, 72), "large": (192, 144), "middle": (128, 96)}
    pairs = [Pair(encoded(photograph(2, *size)), name, f"http://a.test/{name}") for name, size in sizes.items()]
    raw = build_raw(tmp_path, pairs)
    uids = [uid_of(pair) for pair in pairs]
    scores = str(tmp_path / "signals/tiny/0")
    columns = {"uid": uids, "clip_score": pa.array([0.3, 0.1, None], pa.float32())}
    write_table(table_url(scores, "0000/0000000"), pa.table(columns))
    save_manifest(scores, Manifest("tiny", "signals", "0", [], [ShardEntry("0000/0000000", 3, 3, 0)]))
    expected = {"largest": uids[1], "highest_score": uids[0], "smallest_uid": min(uids)}
    for keep, kept in expected.items():
        settings = {"keep": keep, "name": keep} | ({"score_signal": "tiny"} if keep == "highest_score" else {})
        recipe = CurateRecipe.model_validate(
            {
                "root": str(tmp_path),
                "source": {"kind": "folder", "path": "unused"},
                "signals": [{"kind": "clip", "name": "tiny", "model": "unused"}],
                "dedupe": settings,
            }
        )
        decisions = decisions_of(dedupe(recipe, raw, {"tiny": scores}))
        assert [uid for uid, row in decisions.items() if row["drop_reason"] is None] == [kept]
        assert {row["duplicate_of"] for row in decisions.values()} == {None, kept}


def test_equal_hashes_of_other_colours_are_no_duplicates(tmp_path: Path, ray_session: None) -> None:
    """Grey hashes cannot tell red from blue: the thumbnail does. Flat images are told by their colour alone."""
    plain = [np.full((64, 64, 3), colour, np.uint8) for colour in ([200, 30, 30], [30, 30, 200], [198, 30, 32])]
    pairs = [
        Pair(encoded(pixels, "PNG"), f"flat {index}", f"http://a.test/{index}.png")
        for index, pixels in enumerate(plain)
    ]
    folder = dedupe(recipe_for(tmp_path), build_raw(tmp_path, pairs), {})
    decisions = decisions_of(folder)
    reds = sorted([uid_of(pairs[0]), uid_of(pairs[2])])
    assert decisions[uid_of(pairs[1])]["drop_reason"] is None
    assert [decisions[uid]["drop_reason"] for uid in reds] == [None, "perceptual_duplicate"]
    details = load_manifest(folder).details
    assert details["num_flat_candidates"] == 3
    assert details["num_flat_duplicates"] == 1


def test_order_of_the_input_changes_nothing(tmp_path: Path, ray_session: None) -> None:
    pairs = photographs(20)
    pairs += [Pair(encoded(photograph(seed), quality=60), f"copy {seed}", f"http://b.test/{seed}") for seed in range(8)]
    pairs += [Pair(pairs[seed].image, pairs[seed].caption, f"http://c.test/{seed}") for seed in range(4)]
    one = decisions_of(dedupe(recipe_for(tmp_path / "one"), build_raw(tmp_path / "one", pairs, 5), {}))
    shuffled = [pairs[place] for place in np.random.default_rng(SEED).permutation(len(pairs))]
    other = decisions_of(dedupe(recipe_for(tmp_path / "other"), build_raw(tmp_path / "other", shuffled, 7), {}))
    assert one == other
    assert sum(row["drop_reason"] is not None for row in one.values()) == 12


def test_a_second_run_writes_nothing(tmp_path: Path, ray_session: None) -> None:
    raw = build_raw(tmp_path, photographs(4))
    folder = dedupe(recipe_for(tmp_path), raw, {})
    before = {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("*")}

    def refuse() -> None:
        raise AssertionError("a complete step began to work")

    assert dedupe(recipe_for(tmp_path), raw, {}, refuse) == folder
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("*")} == before


def test_precision_and_recall_on_real_triples(
    tmp_path: Path, ray_session: None, shared_data: Callable[[str], Path]
) -> None:
    """110 photographs, each as original, recompressed and squashed: one of each triple must be left."""
    folder = shared_data("dedup_triples")
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    pairs, group_of = [], {}
    for group in groups:
        for number, kind in enumerate(("original", "recompressed", "squashed224")):
            pair = Pair((folder / group[kind]).read_bytes(), group["captions"][number], f"http://a.test/{group[kind]}")
            pairs.append(pair)
            group_of[uid_of(pair)] = group["id"]
    result = dedupe(recipe_for(tmp_path), build_raw(tmp_path, pairs, 50), {})
    dropped = {uid: row["duplicate_of"] for uid, row in decisions_of(result).items() if row["drop_reason"]}
    true = sum(group_of[uid] == group_of[kept] for uid, kept in dropped.items())
    precision, recall = true / len(dropped), true / (2 * len(groups))
    figures = {"precision": precision, "recall": recall, "dropped": len(dropped)}
    assert precision == recall == 1.0, figures
