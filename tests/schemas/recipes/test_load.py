"""Recipes: strict, overridable, hashed by the settings that change results."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe, parse_recipe, settings_of, step_hash
from pairloom.schemas.recipes.train import TrainRecipe

CURATE = """
root: out
source: {kind: url_table, path: urls.csv}
"""
TRAIN = """
run: {dir: runs/a, total_samples: 1000}
task: {kind: contrastive, loss: siglip}
model: {preset: siglip-test-tiny}
data: {train: [{path: out/curated/train}], num_lanes: 8}
batch: {global_batch_size: 64}
optimizer: {learning_rate: 1.0e-3}
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_minimal_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, CURATE), CurateRecipe)
    assert recipe.ingest.samples_per_shard == 10_000
    assert recipe.dedupe.perceptual is not None
    assert recipe.dedupe.perceptual.max_distance == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CURATE + "ingest: {sample_per_shard: 5}", "did you mean samples_per_shard?"),
        (CURATE + "ingest: {fetch: {time_out_s: 5}}", "did you mean timeout_s?"),
        (CURATE + "dedup: {}", "unknown key dedup; did you mean dedupe?"),
        (CURATE + "signals: [{kind: clip, name: a, modle: x}]", "did you mean model?"),
        ("root: out", "source is required"),
        ('root: "o\\0ut"\nsource: {kind: folder, path: a}', "root has a NUL character"),
        (CURATE + "select: {min_words: 3}", "need `- kind: captions`"),
        (CURATE + "select: {scores: [{signal: b32, min: 0.2}]}", "b32 is not a signal"),
        ("- 1", "a recipe is a mapping"),
        ("a: [", "not YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as raised:
        load_recipe(write(tmp_path, text), CurateRecipe)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_overrides_reach_lists_and_make_missing_parents(tmp_path: Path) -> None:
    overrides = ["data.train.0.path=elsewhere", "zero.stage=3", "optimizer.learning_rate=2e-4"]
    recipe = load_recipe(write(tmp_path, TRAIN), TrainRecipe, overrides)
    assert recipe.data.train[0].path == "elsewhere"
    assert recipe.zero.stage == 3
    assert recipe.optimizer.learning_rate == 2e-4


@pytest.mark.parametrize("override", ["no_value", "data.train.7.path=x", "root.deeper=1", "=3"])
def test_bad_overrides_are_refused(tmp_path: Path, override: str) -> None:
    text = TRAIN if override.startswith("data") else CURATE
    model = TrainRecipe if override.startswith("data") else CurateRecipe
    with pytest.raises(RecipeError, match="override"):
        load_recipe(write(tmp_path, text), model, [override])


def test_lanes_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="num_lanes 7 must divide"):
        load_recipe(write(tmp_path, TRAIN), TrainRecipe, ["data.num_lanes=7"])


def test_hash_covers_settings_that_change_results_only() -> None:
    settings = {"root": "a", "source": {"kind": "url_table", "path": "x"}}
    same = {**settings, "ingest": {"samples_per_shard": 10_000, "fetch": {"concurrency": 7}}}
    other = {**settings, "ingest": {"samples_per_shard": 9_000}}

    def hash_of(values: Mapping[str, object]) -> str:
        recipe = parse_recipe(values, CurateRecipe, "test")
        return step_hash("raw", 1, settings_of(recipe.ingest, exclude={"fetch"}))

    assert hash_of(settings) == hash_of(same)
    assert hash_of(settings) != hash_of(other)


def test_golden_hash_stays_across_releases() -> None:
    found = step_hash("select", 1, {"min_words": 3}, parents=["p" * 64], inputs={"model": "f" * 64})
    assert found == GOLDEN_HASH


GOLDEN_HASH = "7e9347404afef10170fbfefa7cdf47084c9e30d1dd65ef330481c68270f23bcb"
