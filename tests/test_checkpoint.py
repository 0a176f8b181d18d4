"""Checkpoints: what is interrupted goes on with the same bits, and what does not fit is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.train_recipe import TrainRecipe
from tests.curated_builder import build_curated, colour_pairs
from tests.ranks import run_ranks
from tests.tiny_runs import BATCH, metrics_of, tiny_data, tiny_recipe, train_in_ranks

TIMES = {"samples_per_s", "data_wait_fraction", "memory_bytes"}
STAGES = (0, 1, 2, 3)
HALF = f"run.checkpoint_every_samples={3 * BATCH}"
Runs = tuple[Path, str]


def results(run: Path) -> list[dict[str, float]]:
    """Metrics without what the clock says."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in metrics_of(run)]


def interrupted(run: Path, name: str, step: int = 3) -> Path:
    """A copy of a run as if it had been killed after the checkpoint of `step`, while writing the next one."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export", ignore_errors=True)
    last = copy / "checkpoints" / "step-0000006"
    (last / "manifest.json").unlink()
    last.rename(last.with_name("step-0000006.partial"))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "samples_')
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two-rank runs of every stage, never interrupted, with checkpoints after steps 3 and 6."""
    root = tmp_path_factory.mktemp("runs")
    data = tiny_data(root / "data")
    run_ranks(train_in_ranks, 2, [tiny_recipe(root / f"z{s}", data, HALF, f"zero.stage={s}") for s in STAGES])
    return root, data


def test_a_resumed_run_has_the_same_bits(whole: Runs) -> None:
    root, data = whole
    copies = [interrupted(root / f"z{stage}", f"resumed{stage}") for stage in STAGES]
    pairs = zip(copies, STAGES, strict=True)
    run_ranks(train_in_ranks, 2, [tiny_recipe(copy, data, HALF, f"zero.stage={stage}") for copy, stage in pairs])
    for copy, stage in zip(copies, STAGES, strict=True):
        assert results(copy) == results(root / f"z{stage}"), stage
        weights = "checkpoints/step-0000006/model/model.safetensors"
        assert (copy / weights).read_bytes() == (root / f"z{stage}" / weights).read_bytes()
        assert (copy / "export" / "provenance.json").exists()
        assert not list(copy.glob("checkpoints/*.partial"))


def test_stage_0_goes_on_with_another_number_of_ranks(whole: Runs) -> None:
    root, data = whole
    copy = interrupted(root / "z0", "one_rank")
    run_ranks(train_in_ranks, 1, [tiny_recipe(copy, data, HALF, "zero.stage=0")])
    for one, two in zip(results(copy), results(root / "z0"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_a_longer_run_goes_on(whole: Runs) -> None:
    root, data = whole
    copy = root / "longer"
    shutil.copytree(root / "z1", copy)
    recipe = tiny_recipe(copy, data, "zero.stage=1", f"run.total_samples={8 * BATCH}", "run.keep_checkpoints=2")
    run_ranks(train_in_ranks, 2, [recipe])
    assert [record["step"] for record in metrics_of(copy)] == list(range(1, 9))
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]
    assert json.loads((copy / "export" / "provenance.json").read_text())["step"] == 8


def failures(recipes: Sequence[TrainRecipe]) -> list[str]:
    """What the ranks say of each recipe; an empty text where it trains."""
    from schemas.errors import UserError

    messages = []
    for recipe in recipes:
        try:
            train_in_ranks([recipe])
            messages.append("")
        except UserError as error:
            messages.append(str(error))
    return messages


def test_what_does_not_fit_is_refused(whole: Runs, tmp_path: Path) -> None:
    root, data = whole
    run = interrupted(root / "z1", "refused")
    copied_data = tmp_path / "curated" / "train"
    shutil.copytree(data, copied_data)
    moved = interrupted(root / "z1", "other_data")
    recipe = (moved / "recipe.yaml").read_text().replace(data, str(copied_data))
    (moved / "recipe.yaml").write_text(recipe)
    build_curated(tmp_path, colour_pairs(40))
    recipes = [
        tiny_recipe(run, data, HALF, "zero.stage=1"),
        tiny_recipe(run, data, HALF, "zero.stage=1", "optimizer.learning_rate=0.5"),
        tiny_recipe(moved, str(copied_data), HALF, "zero.stage=1"),
        tiny_recipe(run, data, HALF, "zero.stage=0"),
        tiny_recipe(root / "z2", data, HALF, "zero.stage=2", f"run.total_samples={4 * BATCH}"),
        tiny_recipe(root / "short", data, "run.total_samples=4"),
    ]
    expected = [
        "saved by 2 ranks, now 1",
        "began with optimizer.learning_rate=0.001, the recipe says 0.5",
        f"{copied_data} is not what",
        "began with zero.stage=1",
        "run.total_samples 32 is less than the 48",
        "less than one step of batch.global_batch_size 8",
    ]
    for message, part in zip(run_ranks(failures, 1, recipes)[0], expected, strict=True):
        assert part in message


def test_a_damaged_file_is_refused(whole: Runs) -> None:
    root, data = whole
    damaged = interrupted(root / "z0", "damaged0")
    next((damaged / "checkpoints" / "step-0000003" / "deepspeed").iterdir()).write_bytes(b"broken")
    message = run_ranks(failures, 1, [tiny_recipe(damaged, data, HALF, "zero.stage=0")])[0][0]
    assert "damaged or missing; remove" in message


def test_a_finished_run_is_left_alone(whole: Runs) -> None:
    root, data = whole
    before = {path: path.stat().st_mtime_ns for path in (root / "z3").rglob("*") if path.is_file()}
    run_ranks(train_in_ranks, 2, [tiny_recipe(root / "z3", data, HALF, "zero.stage=3")])
    after = {path: path.stat().st_mtime_ns for path in (root / "z3").rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"recipe.yaml"}
