"""Dedupe by 256-bit hashes, pixels and MinHash over images made for it; also run in other processes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import parse_recipe
from tests.support.dedupe_builder import decisions_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph


def recipe_for(root: Path, **settings: Any) -> CurateRecipe:
    return parse_recipe(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "phash256"}],
            "dedupe": {"hashes": "phash256", **settings},
        },
        CurateRecipe,
        "test",
    )


def detailed(seed: int) -> npt.NDArray[np.uint8]:
    """A detailed image: for soft blobs, half of the 256 bits would be noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (192, 144), interpolation=cv2.INTER_CUBIC), np.uint8)


def pictures(num: int, captions: tuple[str, ...] = ("a picture",)) -> list[Pair]:
    return [
        Pair(encoded(detailed(seed)), f"{captions[seed % len(captions)]} number {seed}", f"http://a.test/{seed}.jpg")
        for seed in range(num)
    ]


def hashed(recipe: CurateRecipe, raw: str) -> dict[str, str]:
    return {"phash256": measure_signal(recipe, recipe.signals[0], raw, None)}


def lossless(pixels: npt.NDArray[np.uint8], level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def run_everything(root: Path, samples_per_shard: int) -> str:
    """Digest of all decisions by 256 bits, pixels and MinHash over images, copies and captions."""
    pairs = pictures(14, ("a small picture of many soft blobs", "a small picture of many soft blobs in colour"))
    pairs += [Pair(encoded(detailed(seed), quality=70), f"copy {seed}", f"http://b.test/{seed}") for seed in range(5)]
    pairs += [Pair(lossless(photograph(30), level), "lossless", f"http://l.test/{level}") for level in (1, 9)]
    shuffled = [pairs[place] for place in np.random.default_rng(samples_per_shard).permutation(len(pairs))]
    settings = {
        "perceptual": {"bits": 256, "max_distance": 11},
        "decontaminate": [{"path": str(root / "evaluation/raw/main"), "max_distance_256": 30}],
    }
    recipe = recipe_for(root, **settings)
    recipe = recipe.model_copy(
        update={"signals": CurateRecipe.model_validate(
            {"root": "x", "source": {"kind": "folder", "path": "x"},
             "signals": [{"kind": "phash256"}, {"kind": "caption_duplicates"}]}).signals}
    )  # fmt: skip
    build_raw(root / "evaluation", [Pair(encoded(detailed(9), quality=80), "held out", "http://e.test/9")])
    raw = build_raw(root, shuffled, samples_per_shard)
    captions = decisions_of(measure_signal(recipe, recipe.signals[1], raw, None))
    decisions = decisions_of(dedupe(recipe, raw, hashed(recipe, raw)))
    for row in decisions.values():
        row["evaluation_image"] = (row["evaluation_image"] or "").rpartition(": ")[2]
    told = sorted((uid, *decisions[uid].values(), *captions[uid].values()) for uid in decisions)
    return hashlib.sha256(repr(told).encode()).hexdigest()
