"""A task of another package trains, is interrupted, goes on with the same bits and is exported, by the same loop."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionModel

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.caption_length_task import register
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow

TASK = ("task={kind: caption-length}", "tokenizer={}", f"run.checkpoint_every_samples={2 * BATCH}")
STAGES = (1, 3)


def train_with_plugin(recipes: Sequence[str]) -> None:
    """Train recipes (JSON) in ranks that know the task."""
    register()
    train_in_ranks([TrainRecipe.model_validate_json(recipe) for recipe in recipes])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole and interrupted runs of two ranks, and one of one rank with micro-batches and worker processes."""
    register()
    root = tmp_path_factory.mktemp("runs")
    data = tiny_data(root / "data")
    whole = [tiny_recipe(root / f"z{stage}", data, *TASK, f"zero.stage={stage}") for stage in STAGES]
    run_ranks(train_with_plugin, 2, [recipe.model_dump_json() for recipe in whole])
    resumed = []
    for stage in STAGES:
        copy = root / f"resumed{stage}"
        shutil.copytree(root / f"z{stage}", copy)
        shutil.rmtree(copy / "export")
        for step in (4, 6):
            (copy / "checkpoints" / f"step-000000{step}" / "manifest.json").unlink()
        resumed.append(tiny_recipe(copy, data, *TASK, f"zero.stage={stage}"))
    run_ranks(train_with_plugin, 2, [recipe.model_dump_json() for recipe in resumed])
    one = tiny_recipe(root / "one", data, *TASK, "batch.micro_batch_size=2", "data.num_workers=2")
    run_ranks(train_with_plugin, 1, [one.model_dump_json()])
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_equals_the_whole_one(runs: Path, stage: int) -> None:
    assert results_of(runs / f"resumed{stage}") == results_of(runs / f"z{stage}")
    for name in ("auxiliary", "task_state", "model/model", "frozen"):
        files = [
            runs / run / "checkpoints/step-0000006" / f"{name}.safetensors" for run in (f"z{stage}", f"resumed{stage}")
        ]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_ranks_micro_batches_and_workers_change_nothing(runs: Path) -> None:
    for one, two in zip(metrics_of(runs / "one"), metrics_of(runs / "z1"), strict=True):
        for name in ("loss", "loss_regression", "loss_spread", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-5), name


def test_losses_have_weights_by_phase(runs: Path) -> None:
    records = metrics_of(runs / "z1")
    assert [record["phase"] for record in records] == [0, 0, 0, 1, 1, 1]
    for record in records:
        expected = record["loss_regression"] + 0.1 * record["phase"] * record["loss_spread"]
        assert record["loss"] == pytest.approx(expected, rel=1e-6)


def test_checkpoints_keep_heads_and_state_beside_the_export(runs: Path) -> None:
    checkpoint = runs / "z3" / "checkpoints" / "step-0000006"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert {"auxiliary.safetensors", "task_state.safetensors"} <= set(manifest)
    assert {name: tensor.shape for name, tensor in load_file(checkpoint / "auxiliary.safetensors").items()} == {
        "head.weight": (1, 16), "head.bias": (1,)
    }  # fmt: skip
    assert load_file(checkpoint / "task_state.safetensors")["centre"].abs().sum() > 0
    _, loading = SiglipVisionModel.from_pretrained(runs / "z3" / "export", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    receipt = json.loads((runs / "z3" / "export" / "receipt.json").read_text())
    assert receipt["largest_output_difference"] < 1e-5
    before = load_file(runs / "z3" / "checkpoints" / "step-0000002" / "auxiliary.safetensors")
    assert not torch.equal(before["head.weight"], load_file(checkpoint / "auxiliary.safetensors")["head.weight"])


def test_its_rules_are_checked_with_the_recipe() -> None:
    register()
    with pytest.raises(RecipeError, match="caption-length takes no model"):
        tiny_recipe("run", "data", *TASK, "model={llava: {vision: v, language: l}}")
