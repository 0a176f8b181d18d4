"""Semantic dedupe against an earlier data set, with its stored features of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.dedupe.dedupe import dedupe, dedupe_folder
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.engine.batches import BatchLimits
from pairloom.pipelines.signals.measure import signal_folder
from pairloom.schemas.data_set.manifest import load_manifest, set_latest
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import SEED, clip_folder, decisions_of, uid_of
from tests.support.raw_builder import Pair, build_raw, photographs

NUM_BUNCHES, NUM_OLD = 9, 24
Bunches = dict[str, npt.NDArray[np.float32]]


def model_in(folder: Path, weights: bytes) -> Path:
    """A folder that identifies a model; no test scores with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def recipe_of(root: Path, model: Path, policy: str, old: str | None = None) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "clip", "name": "tiny", "model": str(model)}],
            "dedupe": {
                "semantic": {"features": "tiny", "num_clusters": 2, "policy": policy},
                "against": [old] if old else [],
            },
        }
    )


def bunched(pairs: list[Pair]) -> Bunches:
    """Features in clusters: of the first old pairs, of all new pairs, of new pairs only."""
    bunches = np.random.default_rng(SEED).standard_normal((NUM_BUNCHES, 32))
    kinds = [place % 5 for place in range(NUM_OLD)] + [3 + place % 6 for place in range(len(pairs) - NUM_OLD)]
    noise = 0.01 * np.random.default_rng(1).standard_normal((len(pairs), 32))
    return {uid_of(pair): normalised(bunches[kind][None] + noise[place])[0]
            for place, (pair, kind) in enumerate(zip(pairs, kinds, strict=True))}  # fmt: skip


@pytest.mark.parametrize("policy", ["greedy", "official", "components"])
def test_a_new_batch_gives_way_to_old_images_of_like_features(tmp_path: Path, ray_session: None, policy: str) -> None:
    """Clusters 3 and 4 are in the old data set, 5 to 8 are new: one sample per new cluster is kept, for any split."""
    pairs = photographs(NUM_OLD + 30)
    old_pairs, new_pairs, features = pairs[:NUM_OLD], pairs[NUM_OLD:], bunched(pairs)
    model, limits = model_in(tmp_path / "model", b"weights"), DEFAULT_LIMITS
    results = []
    for name in ("whole", "cut"):
        root, old_root = tmp_path / name, tmp_path / name / "old"
        old = build_raw(old_root, old_pairs, 7)
        for tar in Path(old).rglob("*.tar"):
            tar.unlink()
        recipe = recipe_of(root, model, policy, old)
        old_recipe = recipe_of(old_root, model, policy)
        folder = signal_folder(old_recipe, old_recipe.signals[0], old, None).url
        set_latest(clip_folder(old_root, old, features, folder))
        raw = build_raw(root, new_pairs, 100 if name == "whole" else 4)
        result = dedupe(recipe, raw, {"tiny": clip_folder(root, raw, features)}, limits=limits)
        assert "semantic_not_compared_with" not in load_manifest(result).details
        results.append(decisions_of(result))
        limits = DedupeLimits(BatchLimits(max_rows=6, min_rows=6), rows_per_part=9)
    assert results[0] == results[1]
    old_uids, kept = {uid_of(pair) for pair in old_pairs}, []
    for place, pair in enumerate(new_pairs):
        row = results[0][uid_of(pair)]
        if place % 6 < 2:
            assert (row["drop_reason"], row["duplicate_of"] in old_uids) == ("semantic_duplicate", True)
            assert row["similarity"] > 0.95
        elif row["drop_reason"] is None:
            kept.append(place % 6)
        else:
            assert results[0][row["duplicate_of"]]["drop_reason"] is None
    assert sorted(kept) == [2, 3, 4, 5]


def test_features_of_another_model_are_reported_and_not_compared(
    tmp_path: Path, ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = photographs(NUM_OLD + 12)
    features, root, old_root = bunched(pairs), tmp_path / "new", tmp_path / "old"
    old, raw = build_raw(old_root, pairs[:NUM_OLD]), build_raw(root, pairs[NUM_OLD:])
    models = [model_in(tmp_path / name, name.encode()) for name in ("one", "other")]
    old_recipe = recipe_of(old_root, models[0], "greedy")
    folder = signal_folder(old_recipe, old_recipe.signals[0], old, None).url
    recipe = recipe_of(root, models[1], "greedy", old)
    own = {"tiny": clip_folder(root, raw, features)}
    before = dedupe_folder(recipe, raw, own).url
    set_latest(clip_folder(old_root, old, features, folder))
    result = dedupe(recipe, raw, own)
    assert result == before
    assert load_manifest(result).details["semantic_not_compared_with"] == [old]
    assert f"dedupe.against: {old} has no features tiny of the same model" in caplog.text
    assert [row["drop_reason"] for row in decisions_of(result).values()].count("semantic_duplicate") == 6
    same = recipe_of(root, models[0], "greedy", old)
    assert dedupe_folder(same, raw, own).url != before  # once they can be compared it is another result
