"""Dedupe in parts: the decisions are the same for any split of the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.engine.batches import BatchLimits
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import SEED, clip_folder, decisions_of, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs


def pairs_of_every_kind() -> list[Pair]:
    """Images with copies, other captions, chains of quality and placeholders."""
    pairs = photographs(30)
    pairs += [Pair(encoded(photograph(seed), quality=60), f"copy {seed}", f"http://b.test/{seed}") for seed in range(9)]
    pairs += [Pair(encoded(photograph(seed, 192, 144)), f"large {seed}", f"http://l.test/{seed}") for seed in range(5)]
    pairs += [Pair(pairs[seed].image, pairs[seed].caption, f"http://c.test/{seed}") for seed in range(4, 8)]
    pairs += [Pair(pairs[seed].image, f"again {seed}", f"http://d.test/{seed}") for seed in range(6, 10)]
    things = ("an oak table", "red shoes, size 9", "Paris by night", "buy tickets now", "Dr. Miller", "lemon cake")
    missing = encoded(photograph(70))
    pairs += [Pair(missing, text, f"http://shop{place}.test/1.jpg") for place, text in enumerate(things)]
    return pairs


def recipe_of(root: Path, **settings: Any) -> CurateRecipe:
    dedupe_settings = {
        "semantic": {"features": "tiny", "num_clusters": 3},
        "placeholders": {"min_captions": 5, "min_domains": 5},
        "decontaminate": [{"path": str(root.parent / "evaluation/raw/main")}],
        "against": [str(root.parent / "old/raw/main")],
    }
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "clip", "name": "tiny", "model": "unused"}],
            "dedupe": dedupe_settings | settings,
        }
    )


def run_cut(
    root: Path, pairs: list[Pair], samples_per_shard: int, limits: DedupeLimits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decisions by uid and the manifest's details; features are functions of the captions."""
    raw = build_raw(root, pairs, samples_per_shard)
    bunches = np.random.default_rng(SEED).standard_normal((12, 32))
    feature_of = {uid_of(pair): normalised(bunches[None, int(uid_of(pair), 16) % 12])[0] for pair in pairs}
    folder = dedupe(recipe_of(root), raw, {"tiny": clip_folder(root, raw, feature_of)}, limits=limits)
    assert not (Path(folder) / "spill").exists()
    return decisions_of(folder), dict(load_manifest(folder).details)


def test_the_cut_of_the_work_never_shows(tmp_path: Path, ray_session: None) -> None:
    """One part and one batch, then many of both with another order of shards, with all rules of dedupe."""
    pairs = pairs_of_every_kind()
    build_raw(tmp_path / "old", [pairs[3], pairs[20], *photographs(33)[30:]], 2)
    build_raw(tmp_path / "evaluation", [Pair(encoded(photograph(12), quality=80), "held out", "http://e.test/1")])
    whole = run_cut(tmp_path / "whole", pairs, 1000)
    limits = DedupeLimits(BatchLimits(max_rows=11), rows_per_part=9, hashes_per_partition=20, rows_per_join=15)
    shuffled = [pairs[place] for place in np.random.default_rng(SEED).permutation(len(pairs))]
    cut = run_cut(tmp_path / "cut", shuffled, 4, limits)
    assert cut == whole
    reasons = [row["drop_reason"] for row in whole[0].values()]
    assert set(reasons) == {
        None, "exact_duplicate", "perceptual_duplicate", "semantic_duplicate", "contaminated", "placeholder"
    }  # fmt: skip


@pytest.mark.parametrize("samples_per_part", [9, 20])
def test_batches_read_before_a_crash_are_not_read_again(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, samples_per_part: int
) -> None:
    """The second run must not read the raw tables again; files of another split are not reused."""
    pairs = pairs_of_every_kind()
    recipe = CurateRecipe.model_validate(
        {"root": str(tmp_path), "source": {"kind": "folder", "path": "unused"}, "dedupe": {}}
    )
    whole = decisions_of(dedupe(recipe, build_raw(tmp_path, pairs, 4), {}))
    raw = build_raw(tmp_path, pairs[::-1], 4, name="other")
    limits = DedupeLimits(BatchLimits(max_rows=11), rows_per_part=9)

    def crash(*_: object) -> None:
        raise InputError("crashed here")

    with monkeypatch.context() as patched:
        patched.setattr("pairloom.pipelines.dedupe.dedupe.decide_part", crash)
        with pytest.raises(InputError, match="crashed here"):
            dedupe(recipe, raw, {}, limits=limits)
    for shard in load_manifest(raw).shards:
        url = table_url(raw, shard.name)
        write_table(url, read_table(url, ["uid"]))
    limits = replace(limits, rows_per_part=samples_per_part)
    if samples_per_part == 9:
        assert decisions_of(dedupe(recipe, raw, {}, limits=limits)) == whole
    else:
        with pytest.raises(InputError, match="not a readable parquet table"):
            dedupe(recipe, raw, {}, limits=limits)
