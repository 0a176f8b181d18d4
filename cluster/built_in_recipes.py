"""The recipes that the installation brings: those for users, then the demo's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.train import TrainRecipe

FOLDERS = ("cluster/recipes", "demo/recipes")  # below the package pairloom


@dataclass(frozen=True)
class BuiltInRecipe:
    """A recipe file of the installation."""

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The comment in the first line."""
        return self.path.read_text().splitlines()[0].lstrip("# ")


def built_in_recipes() -> dict[str, BuiltInRecipe]:
    """All of them by name."""
    package = Path(str(files("pairloom")))
    paths = [path for folder in FOLDERS for path in sorted((package / folder).glob("*.yaml"))]
    return {path.stem: BuiltInRecipe(path.stem, path) for path in paths}


def write_schemas(folder: Path) -> list[Path]:
    """Write `curate.schema.json` and `train.schema.json`; returns their paths.

    An editor completes a recipe whose first line is `# yaml-language-server: $schema=curate.schema.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, model in (("curate", CurateRecipe), ("train", TrainRecipe)):
        paths.append(folder / f"{name}.schema.json")
        paths[-1].write_text(json.dumps(model.model_json_schema(), indent=1) + "\n")
    return paths
