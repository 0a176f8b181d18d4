"""Dedupe: semantic duplicates, preferred values, earlier data sets, placeholders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.dedupe.criteria.semantic import decide_cluster
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table, write_table
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import chained_features, clip_folder, decisions_of, recipe_for, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs

SEED = 7

# ---- semantic


def semantic_by_brute_force(
    features: npt.NDArray[np.float32], centroid: npt.NDArray[np.float32], threshold: float, policy: str
) -> list[int]:
    """The kept images of a cluster by the policies' definitions; features are in keep order."""
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
        of_bunch = [results[0][uid] for uid in uids]
        assert [row["drop_reason"] for row in of_bunch] == [None, "semantic_duplicate", "semantic_duplicate"]
        assert [row["duplicate_of"] for row in of_bunch] == [None, uids[0], uids[0]]
        assert {row["duplicate_group"] for row in of_bunch} == {uids[0]}


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
    """Each shop encodes the placeholder itself."""
    things = ["an oak table", "red shoes, size 9", "Paris by night", "buy tickets now", "Dr. Miller", "lemon cake"]
    popular = [f"Acme X{number} camera, black, with lens" for number in range(6)]
    missing, camera, local = encoded(photograph(50)), encoded(photograph(51)), encoded(photograph(52))
    again = [missing, missing, *(encoded(photograph(50), quality=quality) for quality in (60, 70, 80, 90))]
    pairs = [
        Pair(image, text, f"http://www.shop{place}.test/1.jpg")
        for place, (image, text) in enumerate(zip(again, things, strict=True))
    ]
    pairs += [Pair(camera, text, f"http://shop{place}.test/2.jpg") for place, text in enumerate(popular)]
    pairs += [Pair(local, text, f"http://one.test/{place}.jpg") for place, text in enumerate(things)]
    raw = build_raw(tmp_path, pairs, 7)
    rule = {"min_captions": 5, "min_domains": 5}
    decisions = decisions_of(dedupe(recipe_for(tmp_path, placeholders=rule), raw, {}))
    assert [decisions[uid_of(pair)]["drop_reason"] for pair in pairs] == ["placeholder"] * 6 + [None] * 12
    assert {decisions[uid_of(pair)]["duplicate_of"] for pair in pairs} == {None}
    untouched = decisions_of(dedupe(recipe_for(tmp_path, name="off"), raw, {}))
    assert {row["drop_reason"] for row in untouched.values()} == {None, "perceptual_duplicate"}
