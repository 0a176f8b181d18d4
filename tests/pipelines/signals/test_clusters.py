"""Clusters: the same tree for any shards, draws equal to a direct reference, images near a target set."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairloom.pipelines.algorithms.kmeans import nearest, normalised, train
from pairloom.pipelines.algorithms.seeded_hash import mixed
from pairloom.pipelines.balance.quotas import cluster_quotas, water_fill
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.inspect.inspect import explain
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.clusters import centroids_url, load_tree
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.signals.target_set import target_features
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.errors import InputError, RecipeError
from tests.support.cluster_builder import SIZES, WIDTH, measured, outcome, prepare, recipe_for
from tests.support.dedupe_builder import decisions_of
from tests.support.raw_builder import build_raw, photographs
from tests.support.tiny_models import write_siglip

# ---- quotas


def filled_by_hand(sizes: list[int], target: int) -> list[int]:
    """Add one to each quota in turn until the target is met or all sizes are used up."""
    quotas = [0] * len(sizes)
    while sum(quotas) < min(target, sum(sizes)):
        for place, size in enumerate(sizes):
            if quotas[place] < size and sum(quotas) < target:
                quotas[place] += 1
    return quotas


@pytest.mark.parametrize("target", [0, 1, 5, 6, 7, 17, 40, 99, 100, 1000])
def test_the_target_is_poured_evenly(target: int) -> None:
    assert water_fill(np.array(SIZES), target).tolist() == filled_by_hand(SIZES, target)
    assert water_fill(np.zeros(0, np.int64), target).tolist() == []


def test_the_target_is_poured_level_by_level() -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(0, 30, 40)
    parents = [draw.integers(0, 12, 40).astype(np.int32), draw.integers(0, 3, 12).astype(np.int32)]
    middle = [int(counts[parents[0] == cluster].sum()) for cluster in range(12)]
    top = [sum(size for size, parent in zip(middle, parents[1], strict=True) if parent == one) for one in range(3)]
    for target in (0, 7, 100, 333, 10_000):
        expected = np.zeros(40, np.int64)
        for one, of_top in enumerate(filled_by_hand(top, target)):
            children = np.flatnonzero(parents[1] == one)
            for child, of_child in zip(children, filled_by_hand([middle[c] for c in children], of_top), strict=True):
                leaves = np.flatnonzero(parents[0] == child)
                expected[leaves] = filled_by_hand(counts[leaves].tolist(), of_child)
        assert cluster_quotas(counts, parents, target).tolist() == expected.tolist()


# ---- k-means


def test_centroids_beyond_one_block_are_compared_like_any() -> None:
    draw = np.random.default_rng(1)
    features, centroids = normalised(draw.standard_normal((300, WIDTH))), normalised(draw.standard_normal((50, WIDTH)))
    expected = (features @ centroids.T).argmax(axis=1)
    assert nearest(features, centroids, block_centroids=7).tolist() == expected.tolist()


def test_centroids_are_lloyds(ray_session: None) -> None:
    """Compared with ten plain iterations in double precision."""
    draw = np.random.default_rng(2)
    sample = normalised(draw.standard_normal((400, WIDTH)))
    expected = sample[:5].astype(np.float64)
    for _ in range(10):
        nearest_of = (sample @ expected.T).argmax(axis=1)
        sums = np.stack([sample[nearest_of == cluster].sum(axis=0, dtype=np.float64) for cluster in range(5)])
        expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(train(sample, 5), expected, atol=1e-5)


# ---- in the walk


def test_each_cluster_gives_the_same_and_the_smallest_draws(tmp_path: Path, ray_session: None) -> None:
    raw, feature_of = prepare(tmp_path, 17, list(range(sum(SIZES))))
    folder, selection = measured(recipe_for(tmp_path), raw)
    rows = decisions_of(selection)
    centroids = np.load(centroids_url(folder, 0))
    for uid, row in rows.items():
        assert row["cluster"] == int((normalised(feature_of[uid].astype(np.float16)[None]) @ centroids.T).argmax())
    counts = np.bincount([row["cluster"] for row in rows.values()], minlength=6)
    quotas = cluster_quotas(counts, load_tree(folder).parents, 24)
    assert quotas.sum() == 24 == sum(row["kept"] for row in rows.values())
    for cluster in range(6):
        uids = [uid for uid, row in rows.items() if row["cluster"] == cluster]
        by_draw = sorted(uids, key=lambda uid: int(mixed(pack_uids([uid]), 0)[0]))
        kept = [uid for uid in uids if rows[uid]["kept"]]
        assert sorted(kept) == sorted(by_draw[: quotas[cluster]])
        assert {row["balance_probability"] for uid, row in rows.items() if row["cluster"] == cluster} <= {
            np.float32(quotas[cluster] / counts[cluster])
        }
    reasons = Counter(row["drop_reason"] for row in rows.values())
    assert reasons == {None: 24, "balanced": sum(SIZES) - 24}


def test_sharding_and_order_change_nothing(tmp_path: Path, ray_session: None) -> None:
    shuffled = np.random.default_rng(4).permutation(sum(SIZES)).tolist()
    one = outcome(tmp_path / "one", 100, list(range(100)))
    assert outcome(tmp_path / "many", 7, shuffled) == one
    assert outcome(tmp_path / "some", 33, shuffled[::-1]) == one


RUN = """
import hashlib, sys
from pathlib import Path
import ray
from tests.support.cluster_builder import outcome
ray.init("local", num_cpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
found = outcome(Path(sys.argv[2]), 9, list(range(100)))
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    digests = []
    for num_workers in (1, 2, 8):
        command = [sys.executable, "-c", RUN, str(num_workers), str(tmp_path / str(num_workers))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        digests.append(done.stdout.split()[-1])
    assert len(set(digests)) == 1


def test_explain_with_a_real_model(tmp_path: Path, ray_session: None) -> None:

    raw = build_raw(tmp_path, photographs(30), 8)
    write_siglip(tmp_path / "model")
    recipe = recipe_for(tmp_path, 12, num_clusters=[4, 2])
    dedupe_folder = dedupe(recipe, raw, {})
    signals = {signal.name: measure_signal(recipe, signal, raw, dedupe_folder) for signal in recipe.signals}
    folder = select(recipe, inputs_of(recipe, raw, signals, dedupe_folder, signals["tree"]))
    assert load_manifest(folder).num_samples == 12
    told = explain(str(tmp_path), next(iter(decisions_of(folder))))
    assert told["signals/tree"]["cluster"] == told["selections/default"]["cluster"]
    assert 0 < told["selections/default"]["balance_probability"] <= 1


# ---- near a target


def test_images_near_a_target_set(tmp_path: Path, ray_session: None) -> None:
    """DataComp's rule with given centroids: the nearest centroid is also nearest to an image of the target set."""
    raw, feature_of = prepare(tmp_path, 17, list(range(sum(SIZES))))
    centroids = (np.eye(WIDTH)[: len(SIZES)] * np.linspace(0.5, 1, len(SIZES))[:, None]).astype(np.float32)
    np.save(tmp_path / "centroids.npy", centroids)  # DataComp's have lengths below one, which decide
    target = normalised(np.eye(WIDTH)[[1, 1, 4]] + 0.1)
    np.savez(tmp_path / "target.npz", image_features=target, names=np.arange(3))
    settings: dict[str, Any] = {"num_clusters": None, "centroids": str(tmp_path / "centroids.npy")}
    recipe = recipe_for(tmp_path, **settings, target=str(tmp_path / "target.npz"))
    folder, _ = measured(recipe, raw)
    wanted = set((target @ centroids.T).argmax(axis=1).tolist())
    for uid, row in decisions_of(folder).items():
        feature = normalised(feature_of[uid].astype(np.float16)[None])[0]
        assert row["near_target"] == float(int((centroids @ feature).argmax()) in wanted)


def test_a_target_set_can_be_a_folder_of_images(tmp_path: Path, ray_session: None) -> None:
    model = write_siglip(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number, pair in enumerate(photographs(3)):
        assert isinstance(pair.image, bytes)
        (tmp_path / "images" / f"{number}.jpg").write_bytes(pair.image)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    features = target_features(str(tmp_path / "images"), str(model))
    assert len(features) == 3
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": [2, 6]}, "the finest level comes first"),
        ({"num_clusters": None}, "give num_clusters or centroids"),
        ({"features": "none"}, "none is not a clip signal"),
        ({"name": "other"}, "tree is not a clusters signal"),
    ],
)
def test_recipes_that_cannot_work_are_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_for(tmp_path, **settings)


def test_a_target_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "target.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"not a \.npy or \.npz file"):
        target_features(str(tmp_path / "target.npy"), "unused")
