"""Folders of release 0.1.0 stay valid: every step of every recipe has the hash that it had.

`tests/golden/step_hashes.json` holds the hashes, `tests/golden/recipes` the recipes beside the built-in ones and
`tests/golden/inputs` the files that they name. `python -m tests.golden.make_step_hashes` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pairloom.cluster.built_in_recipes import built_in_recipes
from pairloom.pipelines.curate import curate
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe, step_hash
from tests.support.golden_steps import RECIPES, STEP_HASHES, freeze_source, path_of, prepare_inputs, write_step

EXPECTED: dict[str, Any] = json.loads(STEP_HASHES.read_text())
KINDS = {
    "captions", "caption_duplicates", "clip", "quality", "phash256", "image_classifier", "feature_head", "clusters",
    "word_list",
}  # fmt: skip


def refuse() -> None:
    raise AssertionError("a step has another hash: its folder of release 0.1.0 is not found")


def recipe_of(name: str) -> CurateRecipe:
    path = RECIPES / f"{name}.yaml"
    return load_recipe(str(path if path.exists() else built_in_recipes()[name].path), CurateRecipe)


@pytest.mark.parametrize("name", EXPECTED)
def test_curate_finds_the_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, expected = recipe_of(name), EXPECTED[name]
    prepare_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in expected["folders"]:
        write_step(tmp_path, folder)
    freeze_source(tmp_path, recipe, expected["folders"][0])
    summary = curate(recipe, refuse)
    assert [[step["name"], step["folder"]] for step in summary["steps"]] == expected["steps"]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_settings_give_the_same_hash(name: str) -> None:
    for folder in EXPECTED[name]["folders"]:
        assert step_hash(**folder["hashed"]) == folder["recipe_hash"], path_of(folder)


def test_every_kind_is_covered() -> None:
    recipes = [recipe_of(name) for name in EXPECTED]
    assert {signal.kind for recipe in recipes for signal in recipe.signals} == KINDS
    assert {recipe.source.kind for recipe in recipes} == {"url_table", "webdataset", "parquet_images", "folder"}
    assert {recipe.balance.kind for recipe in recipes if recipe.balance} == {"metaclip", "clusters"}
    assert {recipe.reshard.shuffle for recipe in recipes} == {"block", "global"}
