"""Shared parts of dedupe tests: recipes, decisions by uid, hashes with planted neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, save_manifest, table_url
from pairloom.schemas.data_set.tables import make_uid, read_table, write_table
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.raw_builder import Pair

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


def clip_folder(root: Path, raw: str, feature_of: dict[str, npt.NDArray[np.float32]], folder: str | None = None) -> str:
    """A clip signal with given features: writes the files of `measure_signal`."""
    folder, shards = folder or str(root / "signals/tiny/0"), load_manifest(raw).shards
    for shard in shards:
        uids = read_table(table_url(raw, shard.name), ["uid"])["uid"].to_pylist()
        scores = pa.array([0.3] * len(uids), pa.float32())
        write_table(table_url(folder, shard.name), pa.table({"uid": uids, "clip_score": scores}))
        rows = np.stack([feature_of[uid] for uid in uids]).astype(np.float16)
        np.save(Path(folder) / f"{shard.name}.image_features.npy", rows)
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_rows, 0) for shard in shards]
    save_manifest(folder, Manifest("tiny", "signals", "0", [], entries))
    return folder


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


def chained_features(num: int = 2500, width: int = 16) -> npt.NDArray[np.float32]:
    """Unit features in tight and loose clusters, with chains."""
    generator = np.random.default_rng(SEED)
    centres = generator.standard_normal((num // 6, width))
    rows = centres[generator.integers(0, len(centres), num)] + 0.15 * generator.standard_normal((num, width))
    return normalised(rows)
