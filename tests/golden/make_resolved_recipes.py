"""Write resolved_recipes.json: `python -m tests.golden.make_resolved_recipes`. Run it after a default was changed."""

from __future__ import annotations

import json

import yaml

from pairloom.cluster.built_in_recipes import built_in_recipes
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.golden_steps import GOLDEN


def main() -> None:
    """Write the file."""
    resolved = {}
    for name, built_in in sorted(built_in_recipes().items()):
        model = CurateRecipe if "source" in yaml.safe_load(built_in.path.read_text()) else TrainRecipe
        resolved[name] = load_recipe(str(built_in.path), model).model_dump(mode="json")
    (GOLDEN / "resolved_recipes.json").write_text(json.dumps(resolved, indent=1) + "\n")


if __name__ == "__main__":
    main()
