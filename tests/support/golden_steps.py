"""Roots whose steps are complete but empty: `curate` finds every folder by its hash, or has work to do.

A step hash covers the settings, the manifests of the parents and the content of models and lists, but no pixel. So a
manifest per step is enough to check a recipe.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest
from pairloom.schemas.recipes.curate import CurateRecipe

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STEP_HASHES = GOLDEN / "step_hashes.json"
RECIPES = GOLDEN / "recipes"
EARLIER = "earlier"  # the root of another data set, for `against` and `decontaminate`
NUM_ROWS, NUM_SAMPLES, NUM_BYTES = 3, 2, 4096

Step = Mapping[str, Any]
"""`root`, `step`, `name`, `recipe_hash` and `parents` of one folder."""


def prepare_inputs(folder: Path) -> None:
    """Copy the files of the recipes to `folder`, which becomes the working directory; write the earlier data set."""
    shutil.copytree(GOLDEN / "inputs", folder, dirs_exist_ok=True)
    memory = fsspec.filesystem("memory")  # a path that is the same everywhere: fingerprints cover names of files
    for name in ("target.npy", "target/a.png", "target/below/b.png"):
        memory.pipe_file(f"/{name}", f"the content of {name}\n".encode())
    raw = {"root": EARLIER, "step": "raw", "name": "main", "recipe_hash": "e" * 64, "parents": []}
    raw_hash = write_step(folder, raw)
    phash = {"root": EARLIER, "step": "signals", "name": "phash256", "recipe_hash": "f" * 64, "parents": [raw_hash]}
    write_step(folder, phash)
    for step in (raw, phash):
        set_latest(str(folder / path_of(step)))
    set_latest(str(folder / EARLIER / "signals" / "base" / "00000000"))


def path_of(step: Step) -> str:
    """The folder of a step, relative to the working directory."""
    return f"{step['root']}/{step['step']}/{step['name']}/{step['recipe_hash'][:8]}"


def write_step(folder: Path, step: Step) -> str:
    """Write the manifest of a step below `folder`. Returns its hash."""
    has_tars = step["step"] in ("raw", "curated")
    shard = ShardEntry(
        "0000/0000000", NUM_ROWS, NUM_SAMPLES, NUM_BYTES if has_tars else 0, "a" * 64 if has_tars else None
    )
    details = {"num_segments": 1} if step["step"] == "raw" else {}
    manifest = Manifest(
        step["name"], step["step"], step["recipe_hash"], tuple(step["parents"]), [shard], details=details
    )
    save_manifest(str(folder / path_of(step)), manifest)
    return manifest.hash()


def freeze_source(folder: Path, recipe: CurateRecipe, raw: Step) -> None:
    """Write the segment with the source files, so that ingest finds no new file."""
    files = [
        {"path": str(path), "size": path.stat().st_size, "etag": f"{path.stat().st_size}-{path.stat().st_mtime}",
         "num_rows": NUM_ROWS}
        for path in source_files(folder, recipe.source.path)
    ]  # fmt: skip
    segment = {"index": 0, "first_shard": 0, "num_shards": 1, "files": files, "kept_types": {}}
    target = folder / path_of(raw) / "segments" / "0000.json"
    target.parent.mkdir()
    target.write_text(json.dumps(segment))


def source_files(folder: Path, paths: str | Sequence[str]) -> list[Path]:
    """Files of the source's paths, folders and globs."""
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        found += sorted((folder / path).iterdir() if (folder / path).is_dir() else folder.glob(path))
    return found
