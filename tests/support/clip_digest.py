"""Scores and features of one clip signal by uid; also run in other processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pairloom.pipelines.signals.clip import features_url
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table
from tests.support.raw_builder import build_raw, photographs
from tests.support.signal_builder import recipe_for

CAPTIONS = ("a red circle", "two golf balls and a parachute on the left of a blue square above it", "x")


def rows_of(folder: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(table_url(folder, name)).to_pylist()
    return rows


def clip_rows(folder: str, names: Sequence[str] | None = None) -> dict[str, tuple[Any, ...]]:
    """Score and bytes of the features by uid."""
    found = {}
    for name in names or [shard.name for shard in load_manifest(folder).shards]:
        images, texts = (np.load(features_url(folder, name, kind)) for kind in ("image_features", "text_features"))
        for row, image, text in zip(rows_of(folder, name), images, texts, strict=True):
            found[row["uid"]] = (row["clip_score"], image.tobytes(), text.tobytes())
    return found


def digest_of(root: Path, samples_per_shard: int) -> str:
    """Digest of the scores and features by uid, measured on this process's Ray."""
    order = np.random.default_rng(samples_per_shard).permutation(41)
    pairs = photographs(41, CAPTIONS)
    raw = build_raw(root, [pairs[row] for row in order], samples_per_shard)
    signal_of = {"kind": "clip", "name": "clip", "model": str(root.parent / "model"), "batch_size": 8}
    recipe = recipe_for(root, signal_of)
    folder = measure_signal(recipe, recipe.signals[0], raw, None)
    return hashlib.sha256(repr(sorted(clip_rows(folder).items())).encode()).hexdigest()
