"""Samples whose features form clusters of known sizes; also run in other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.clusters import centroids_url
from pairloom.pipelines.signals.measure import measure_signal, signal_folder
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import parse_recipe
from tests.support.dedupe_builder import clip_folder, decisions_of, uid_of
from tests.support.raw_builder import Pair, build_raw, photographs
from tests.support.tiny_models import write_siglip

SIZES = [60, 25, 9, 4, 1, 1]  # of the bunches that the features fall into: photographs are skewed, too


WIDTH = 16


def recipe_for(root: Path, num_samples: int = 24, **settings: Any) -> CurateRecipe:
    clusters = {"kind": "clusters", "name": "tree", "features": "tiny", "num_clusters": [6, 2], **settings}
    return parse_recipe(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "clip", "name": "tiny", "model": str(root / "model")}, clusters],
            "dedupe": {"exact": True, "perceptual": None},
            "balance": {"kind": "clusters", "clusters": "tree", "num_samples": num_samples},
        },
        CurateRecipe,
        "recipe",
    )


def bunches() -> tuple[list[Pair], dict[str, npt.NDArray[np.float32]]]:
    """Photographs whose features form clusters of SIZES around distant directions."""
    draw = np.random.default_rng(3)
    pairs = photographs(sum(SIZES))
    centres = np.eye(WIDTH)[: len(SIZES)]
    bunch = np.repeat(np.arange(len(SIZES)), SIZES)
    features = normalised(centres[bunch] + 0.05 * draw.standard_normal((len(pairs), WIDTH)))
    return pairs, {uid_of(pair): row for pair, row in zip(pairs, features, strict=True)}


def prepare(root: Path, rows_per_shard: int, order: list[int]) -> tuple[str, dict[str, npt.NDArray[np.float32]]]:
    """A raw folder with a clip signal at the folder that the recipe expects."""
    pairs, feature_of = bunches()
    raw = build_raw(root, [pairs[place] for place in order], rows_per_shard)
    write_siglip(root / "model")
    recipe = recipe_for(root)
    target = signal_folder(recipe, recipe.signals[0], raw, None)
    made = clip_folder(root, raw, feature_of)
    Path(target.url).parent.mkdir(parents=True, exist_ok=True)
    Path(made).rename(target.url)
    return raw, feature_of


def measured(recipe: CurateRecipe, raw: str) -> tuple[str, str]:
    """Folders of the clusters and of the selection."""
    dedupe_folder = dedupe(recipe, raw, {})
    folder = measure_signal(recipe, recipe.signals[1], raw, dedupe_folder)
    signals = {"tree": folder, "tiny": signal_folder(recipe, recipe.signals[0], raw, None).url}
    return folder, select(recipe, inputs_of(recipe, raw, signals, dedupe_folder, folder))


def outcome(root: Path, rows_per_shard: int, order: list[int]) -> tuple[list[Any], bytes]:
    """Cluster and drop reason of every uid, and the centroids."""
    raw, _ = prepare(root, rows_per_shard, order)
    folder, selection = measured(recipe_for(root), raw)
    rows = decisions_of(selection)
    return sorted((uid, row["cluster"], row["drop_reason"] or "") for uid, row in rows.items()), Path(
        centroids_url(folder, 0)
    ).read_bytes()
