"""Dedupe: the pair search is exact, the greedy selection follows the keep policy, real copies are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, save_manifest, table_url
from pairloom.schemas.data_set.tables import write_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import decisions_of, recipe_for, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs

SEED = 7

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
    """Of three copies of one image, the largest, the best scored or the smallest uid is kept."""
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
    """Equal grey hashes of different colours are no duplicates: the thumbnail decides, also for flat images."""
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
    assert details["num_flat_images"] == 3
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
    """110 photographs as original, recompressed and squashed: one image per triple must be kept."""
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
