"""What the tests of dedupe share: recipes, decisions by uid, hashes with planted neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.curate_recipe import CurateRecipe
from schemas.manifest import load_manifest, table_url
from schemas.sample import make_uid, read_table
from tests.raw_builder import Pair

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
