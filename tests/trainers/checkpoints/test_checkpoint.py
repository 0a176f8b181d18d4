"""Checkpoints: what is interrupted goes on with the same bits, and what does not fit is refused.

Starting ranks costs seconds: each number of ranks is started once, and the tests look at what is left.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pairloom.schemas.errors import UserError
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.curated_builder import build_curated, colour_pairs
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
HALF = f"run.checkpoint_every_samples={3 * BATCH}"
THIRDS = (f"run.checkpoint_every_samples={2 * BATCH}", "model.locked=[vision]")
Times = Mapping[Path, int]


def interrupted(run: Path, name: str, step: int = 3) -> Path:
    """A copy of a run as if it had been killed after step 6, with the checkpoint of `step` and half of later ones."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export", ignore_errors=True)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name > f"step-{step:07d}":
            (checkpoint / "manifest.json").unlink()
            (checkpoint / "state.json").unlink()
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "samples_')
    return copy


def times_of(run: Path) -> Times:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "recipe.yaml"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """Two-rank runs of every stage, never interrupted, with checkpoints after steps 3 and 6."""
    root = tmp_path_factory.mktemp("runs")
    run_ranks(train_in_ranks, 2, [tiny_recipe(root / f"z{s}", data, HALF, f"zero.stage={s}") for s in STAGES])
    return root


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """Four-rank runs of every stage with a locked tower, never interrupted, with checkpoints after steps 2, 4, 6."""
    root = tmp_path_factory.mktemp("four")
    run_ranks(train_in_ranks, 4, [tiny_recipe(root / f"z{s}", data, *THIRDS, f"zero.stage={s}") for s in STAGES])
    return root


@pytest.fixture(scope="module")
def resumed(whole: Path, four: Path, data: str) -> tuple[Path, Times]:
    """Two ranks go on: `resumed0` .. `resumed3`, `longer`, the finished `z3` (its file times before), and what four
    ranks left after step 2.
    """
    recipes = [
        tiny_recipe(interrupted(whole / f"z{stage}", f"resumed{stage}"), data, HALF, f"zero.stage={stage}")
        for stage in STAGES
    ]
    shutil.copytree(whole / "z1", whole / "longer")
    length = (f"run.total_samples={8 * BATCH}", "run.keep_checkpoints=2")
    recipes.append(tiny_recipe(whole / "longer", data, "zero.stage=1", *length))
    recipes.append(tiny_recipe(whole / "z3", data, HALF, "zero.stage=3"))
    for stage in STAGES:
        run = interrupted(four / f"z{stage}", f"two{stage}", step=2)
        recipes.append(tiny_recipe(run, data, *THIRDS, f"zero.stage={stage}"))
    before = times_of(whole / "z3")
    run_ranks(train_in_ranks, 2, recipes)
    return whole, before


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_has_the_same_bits(resumed: tuple[Path, Times], stage: int) -> None:
    root, _ = resumed
    copy, run = root / f"resumed{stage}", root / f"z{stage}"
    assert results_of(copy) == results_of(run)
    weights = "checkpoints/step-0000006/model/model.safetensors"
    assert (copy / weights).read_bytes() == (run / weights).read_bytes()
    assert (copy / "export" / "provenance.json").exists()
    assert len(list(copy.glob("checkpoints/*"))) == 2


def test_run_resumes_with_more_samples(resumed: tuple[Path, Times]) -> None:
    copy = resumed[0] / "longer"
    assert [record["step"] for record in metrics_of(copy)] == list(range(1, 9))
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]
    assert json.loads((copy / "export" / "provenance.json").read_text())["step"] == 8


def test_finished_run_does_nothing(resumed: tuple[Path, Times]) -> None:
    root, before = resumed
    assert times_of(root / "z3") == before


def outcomes(recipes: Sequence[TrainRecipe]) -> list[str]:
    """What the ranks say of each recipe; an empty text where it trains."""
    messages = []
    for recipe in recipes:
        try:
            train_in_ranks([recipe])
            messages.append("")
        except UserError as error:
            messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def errors(
    whole: Path, four: Path, resumed: object, data: str, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """What one rank says to runs of two ranks; it goes on with what two ranks left after step 4."""
    other = interrupted(whole / "z0", "other_data")
    copied = tmp_path_factory.mktemp("copy") / "curated" / "train"
    shutil.copytree(data, copied)
    (other / "recipe.yaml").write_text((other / "recipe.yaml").read_text().replace(data, str(copied)))
    build_curated(copied.parent.parent, colour_pairs(40))
    damaged = interrupted(whole / "z0", "damaged")
    (damaged / "checkpoints" / "step-0000003" / "optimizer" / "rank-00001.safetensors").write_bytes(b"broken")
    run = interrupted(whole / "z1", "refused")
    recipes = {
        "other rate": tiny_recipe(run, data, HALF, "zero.stage=1", "optimizer.learning_rate=0.5"),
        "other stage": tiny_recipe(interrupted(whole / "z1", "other_stage"), data, HALF, "zero.stage=3"),
        "older recipe": tiny_recipe(as_by_an_older_version(whole / "z1"), data, HALF, "zero.stage=1"),
        "other data": tiny_recipe(other, str(copied), HALF, "zero.stage=0"),
        "damaged": tiny_recipe(damaged, data, HALF, "zero.stage=0"),
        "shorter": tiny_recipe(whole / "z2", data, HALF, "zero.stage=2", f"run.total_samples={4 * BATCH}"),
        "nothing": tiny_recipe(whole / "short", data, "run.total_samples=4"),
    }
    for stage in STAGES:
        last = interrupted(four / f"two{stage}", f"one{stage}", step=4)
        recipes[f"one{stage}"] = tiny_recipe(last, data, *THIRDS, f"zero.stage={stage}")
    return dict(zip(recipes, run_ranks(outcomes, 1, list(recipes.values()))[0], strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_four_ranks_then_two_then_one(errors: Mapping[str, str], four: Path, stage: int) -> None:
    assert errors[f"one{stage}"] == ""
    never_interrupted, joined = results_of(four / f"z{stage}"), results_of(four / f"one{stage}")
    assert [record["step"] for record in joined] == [1, 2, 3, 4, 5, 6]
    assert joined != never_interrupted  # other ranks did add up other sums
    assert_same_training(joined, never_interrupted)
    states = [
        json.loads((four / f"one{stage}" / "checkpoints" / f"step-{step:07d}" / "state.json").read_text())
        for step in (2, 4, 6)
    ]
    assert [state["world_size"] for state in states] == [4, 2, 1]
    weights = "checkpoints/step-0000006/model/model.safetensors"
    frozen = [load_file(four / name / weights) for name in (f"z{stage}", f"one{stage}")]
    towers = [name for name in frozen[0] if name.startswith("vision_model.")]
    assert towers
    assert all(torch.equal(frozen[0][name], frozen[1][name]) for name in towers)


def test_run_resumes_with_another_zero_stage(errors: Mapping[str, str], whole: Path) -> None:
    assert errors["other stage"] == ""
    assert_same_training(results_of(whole / "other_stage"), results_of(whole / "z1"))


def as_by_an_older_version(run: Path) -> Path:
    """A copy whose recipe.yaml lacks fields that a later version added."""
    copy = interrupted(run, "older_recipe")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    del recipe["precision"], recipe["zero"], recipe["model"]["compile"], recipe["optimizer"]["eps"]
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return copy


def test_a_run_survives_an_upgrade(errors: Mapping[str, str], whole: Path) -> None:
    assert errors["older recipe"] == ""
    assert_same_training(results_of(whole / "older_recipe"), results_of(whole / "z1"))


def assert_same_training(one: Sequence[Mapping[str, float]], two: Sequence[Mapping[str, float]]) -> None:
    for left, right in zip(one, two, strict=True):
        assert left["sample_checksum"] == right["sample_checksum"]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("other rate", "began with optimizer.learning_rate=0.001, the recipe says 0.5"),
        ("other data", "curated/train is not what"),
        ("damaged", "rank-00001.safetensors: damaged or missing; remove"),
        ("shorter", "run.total_samples 32 is less than the 48"),
        ("nothing", "less than one step of batch.global_batch_size 8"),
    ],
)
def test_mismatched_recipe_is_refused(errors: Mapping[str, str], case: str, part: str) -> None:
    assert part in errors[case]
