"""Write step_hashes.json from the code as it is: `python -m tests.golden.make_step_hashes`.

Run it only after a change that is meant to make folders of earlier releases stale (a new version of a step).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pairloom.cluster.built_in_recipes import built_in_recipes
from pairloom.pipelines.curate import curate
from pairloom.pipelines.engine.step_folder import StepFolder, nothing
from pairloom.pipelines.ingest.ingest import raw_folder
from pairloom.schemas.recipes import load as recipe_io
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.golden_steps import RECIPES, STEP_HASHES, freeze_source, prepare_inputs, write_step

hashed: dict[str, Any] = {}
folders: list[dict[str, Any]] = []
canonical_json = recipe_io.canonical_json


def record_text(value: Any) -> str:
    """Keep the value that the last step hash covers."""
    hashed["last"] = value
    return canonical_json(value)


def complete(target: StepFolder) -> bool:
    """Stands for StepFolder.is_complete: makes the folder complete, and keeps what it is named by."""
    if not (Path(target.url) / "manifest.json").exists():
        step = {
            "root": target.root,
            "step": target.step,
            "name": target.name,
            "recipe_hash": target.recipe_hash,
            "parents": list(target.parents),
        }
        write_step(Path(), step)
        folders.append({**step, "hashed": hashed["last"]})
    return True


def hashes_of(path: Path) -> dict[str, Any]:
    """Folders of all steps of one recipe, in the order in which `curate` reaches them, and the ones that it reports."""
    folders.clear()
    recipe = recipe_io.load_recipe(str(path), CurateRecipe)
    with tempfile.TemporaryDirectory() as scratch:
        prepare_inputs(Path(scratch))
        os.chdir(scratch)
        complete(raw_folder(recipe))
        freeze_source(Path(scratch), recipe, folders[0])
        summary = curate(recipe, nothing)
        steps = [[step["name"], step["folder"]] for step in summary["steps"]]
    return {"steps": steps, "folders": list(folders)}


def main() -> None:
    """Write the file."""
    recipe_io.canonical_json = record_text
    StepFolder.is_complete = complete  # type: ignore[method-assign, assignment]
    paths = [one.path for one in built_in_recipes().values() if "source:" in one.path.read_text()]
    found = {path.stem: hashes_of(path.resolve()) for path in sorted([*paths, *RECIPES.glob("*.yaml")])}
    STEP_HASHES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
