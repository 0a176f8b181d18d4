"""Write resolved_recipes.json: `python -m tests.golden.make_resolved_recipes`. Run it after a default was changed."""

from __future__ import annotations

import json

import yaml

from cluster.cli import RECIPES
from schemas.curate_recipe import CurateRecipe
from schemas.recipe_io import load_recipe
from schemas.train_recipe import TrainRecipe
from tests.golden_steps import GOLDEN


def main() -> None:
    """Write the file."""
    resolved = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        model = CurateRecipe if "source" in yaml.safe_load(path.read_text()) else TrainRecipe
        resolved[path.stem] = load_recipe(str(path), model).model_dump(mode="json")
    (GOLDEN / "resolved_recipes.json").write_text(json.dumps(resolved, indent=1) + "\n")


if __name__ == "__main__":
    main()
