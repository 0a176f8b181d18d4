"""Checkpoints: what is interrupted goes on with the same bits, and what does not fit is refused.

Starting ranks costs seconds: each number of ranks is started once, and the tests look at what is left.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.train_recipe import TrainRecipe
from tests.curated_builder import build_curated, colour_pairs
from tests.ranks import run_ranks
from tests.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe, train_in_ranks

STAGES = (0, 1, 2, 3)
HALF = f"run.checkpoint_every_samples={3 * BATCH}"
Times = Mapping[Path, int]


def interrupted(run: Path, name: str) -> Path:
    """A copy of a run as if it had been killed after step 6, with the checkpoint of step 3 and half of that of 6."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export", ignore_errors=True)
    last = copy / "checkpoints" / "step-0000006"
    (last / "manifest.json").unlink()
    last.rename(last.with_name("step-0000006.partial"))
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
def resumed(whole: Path, data: str) -> tuple[Path, Times]:
    """Two ranks go on: `resumed0` .. `resumed3`, `longer`, and the finished `z3` (its file times before)."""
    recipes = [
        tiny_recipe(interrupted(whole / f"z{stage}", f"resumed{stage}"), data, HALF, f"zero.stage={stage}")
        for stage in STAGES
    ]
    shutil.copytree(whole / "z1", whole / "longer")
    length = (f"run.total_samples={8 * BATCH}", "run.keep_checkpoints=2")
    recipes.append(tiny_recipe(whole / "longer", data, "zero.stage=1", *length))
    recipes.append(tiny_recipe(whole / "z3", data, HALF, "zero.stage=3"))
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
    assert not list(copy.glob("checkpoints/*.partial"))


def test_a_longer_run_goes_on(resumed: tuple[Path, Times]) -> None:
    copy = resumed[0] / "longer"
    assert [record["step"] for record in metrics_of(copy)] == list(range(1, 9))
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]
    assert json.loads((copy / "export" / "provenance.json").read_text())["step"] == 8


def test_a_finished_run_is_left_alone(resumed: tuple[Path, Times]) -> None:
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
def said(whole: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What one rank says to runs of two ranks."""
    run = interrupted(whole / "z1", "refused")
    other = interrupted(whole / "z0", "other_data")
    copied = tmp_path_factory.mktemp("copy") / "curated" / "train"
    shutil.copytree(data, copied)
    (other / "recipe.yaml").write_text((other / "recipe.yaml").read_text().replace(data, str(copied)))
    build_curated(copied.parent.parent, colour_pairs(40))
    damaged = interrupted(whole / "z0", "damaged")
    next((damaged / "checkpoints" / "step-0000003" / "deepspeed").iterdir()).write_bytes(b"broken")
    recipes = {
        "stage 0": tiny_recipe(interrupted(whole / "z0", "one_rank"), data, HALF, "zero.stage=0"),
        "stage 1": tiny_recipe(run, data, HALF, "zero.stage=1"),
        "other rate": tiny_recipe(run, data, HALF, "zero.stage=1", "optimizer.learning_rate=0.5"),
        "other stage": tiny_recipe(run, data, HALF, "zero.stage=0"),
        "other data": tiny_recipe(other, str(copied), HALF, "zero.stage=0"),
        "damaged": tiny_recipe(damaged, data, HALF, "zero.stage=0"),
        "shorter": tiny_recipe(whole / "z2", data, HALF, "zero.stage=2", f"run.total_samples={4 * BATCH}"),
        "nothing": tiny_recipe(whole / "short", data, "run.total_samples=4"),
    }
    return dict(zip(recipes, run_ranks(outcomes, 1, list(recipes.values()))[0], strict=True))


def test_stage_0_goes_on_with_another_number_of_ranks(said: Mapping[str, str], whole: Path) -> None:
    assert said["stage 0"] == ""
    for one, two in zip(results_of(whole / "one_rank"), results_of(whole / "z0"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("stage 1", "saved by 2 ranks, now 1"),
        ("other rate", "began with optimizer.learning_rate=0.001, the recipe says 0.5"),
        ("other stage", "began with zero.stage=1, the recipe says 0"),
        ("other data", "curated/train is not what"),
        ("damaged", "damaged or missing; remove"),
        ("shorter", "run.total_samples 32 is less than the 48"),
        ("nothing", "less than one step of batch.global_batch_size 8"),
    ],
)
def test_what_does_not_fit_is_refused(said: Mapping[str, str], case: str, part: str) -> None:
    assert part in said[case]
