"""Defaults of release 0.1.0 stay: every built-in recipe resolves to the values that it had. New fields may come.

`python -m tests.golden.make_resolved_recipes` writes `tests/golden/resolved_recipes.json` anew.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from pairloom.cluster.built_in_recipes import built_in_recipes
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.golden_differences import differences
from tests.support.golden_steps import GOLDEN

EXPECTED: dict[str, Any] = json.loads((GOLDEN / "resolved_recipes.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_resolved_recipe(name: str) -> None:
    model = CurateRecipe if "source" in EXPECTED[name] else TrainRecipe
    found = load_recipe(str(built_in_recipes()[name].path), model).model_dump(mode="json")
    assert differences(EXPECTED[name], found, name) == []


def test_every_recipe_of_the_release_is_still_there() -> None:
    assert set(EXPECTED) <= set(built_in_recipes())
