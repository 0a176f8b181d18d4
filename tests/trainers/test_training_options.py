"""What a recipe can ask of the training beside the loss: each does what it says, on any number of ranks."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.train import OptimizerRecipe
from pairloom.trainers.export.hugging_face import export
from pairloom.trainers.optimizers.optimizers import Lamb, Muon, build_optimizer
from pairloom.trainers.optimizers.parameter_groups import depths_of, group_parameters
from pairloom.trainers.optimizers.schedule import rate_factor
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe, train_in_ranks

DECAY = 0.6
AVERAGE = [f"optimizer.average_decay={DECAY}", "run.keep_checkpoints=9", f"run.checkpoint_every_samples={BATCH}"]
LAMB = ["optimizer.name=lamb", "zero.stage=0", "optimizer.learning_rate=0.01"]
MUON = ["optimizer.name=muon", "zero.stage=0", f"run.checkpoint_every_samples={2 * BATCH}"]
PATCHES = ["task.patch_dropout=0.5", "model.preset=clip-test-tiny", "task.loss=clip"]
HALF = "batch.micro_batch_size=2"
CHECKPOINTED = "model.activation_checkpointing=true"
ONE = {"plain": [], "patches": PATCHES, "lamb": LAMB, "muon": MUON}
TWO = {
    "patches": [*PATCHES, HALF],
    "lamb": LAMB,
    "muon": MUON,
    "average": [*AVERAGE, "zero.stage=2"],
    "checkpointed": [CHECKPOINTED, "zero.stage=1", HALF],
    "checkpointed-3": [CHECKPOINTED, "zero.stage=3"],
    "average-3": [*AVERAGE, "zero.stage=3"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process (`1-NAME`) and of two ranks (`2-NAME`) below one folder."""
    root = tmp_path_factory.mktemp("runs")
    data = tiny_data(root / "data")
    for count, cases in ((1, ONE), (2, TWO)):
        recipes = [tiny_recipe(root / f"{count}-{name}", data, *overrides) for name, overrides in cases.items()]
        run_ranks(train_in_ranks, count, recipes)
    return root


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in metrics_of(run)]


@pytest.mark.parametrize(
    ("two", "one"),
    [
        ("patches", "patches"),
        ("lamb", "lamb"),
        ("muon", "muon"),
        ("checkpointed", "plain"),
        ("checkpointed-3", "plain"),
    ],
)
@pytest.mark.slow
def test_two_ranks_equal_one_process(runs: Path, two: str, one: str) -> None:
    assert losses(runs / f"2-{two}") == pytest.approx(losses(runs / f"1-{one}"), rel=2e-6)


@pytest.mark.slow
def test_dropped_patches_change_the_loss(runs: Path) -> None:
    values = losses(runs / "1-patches")
    assert len(values) == 6
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["average", "average-3"])
@pytest.mark.slow
def test_the_average_is_that_of_the_weights(runs: Path, name: str) -> None:
    checkpoints = sorted((runs / f"2-{name}" / "checkpoints").iterdir())
    assert len(checkpoints) == 6
    average: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        weights = load_file(checkpoint / "model" / "model.safetensors")
        average = {key: average.get(key, now).lerp(now, 1 - DECAY) for key, now in weights.items()}
        for key, tensor in load_file(checkpoint / "average" / "model.safetensors").items():
            assert torch.allclose(tensor, average[key], atol=1e-6), key


@pytest.mark.slow
def test_the_average_is_exported_when_asked(runs: Path, tmp_path: Path) -> None:
    run = runs / "2-average"
    export(str(run), str(tmp_path / "out"), averaged=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(run / "checkpoints" / "step-0000006" / "average" / "model.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(found["logit_scale"], load_file(run / "export" / "model.safetensors")["logit_scale"])
    with pytest.raises(Exception, match="average_decay keeps them"):
        export(str(runs / "1-plain"), str(tmp_path / "none"), averaged=True)


@pytest.mark.slow
def test_resumed_run_keeps_its_weight_average(runs: Path, tmp_path: Path) -> None:
    whole, data = runs / "2-average", str(runs / "data" / "curated" / "train")
    parts = [
        tiny_recipe(tmp_path / "run", data, *AVERAGE, "zero.stage=3", "optimizer.schedule=constant", length)
        for length in ("run.total_samples=24", "run.total_samples=48")
    ]
    run_ranks(train_in_ranks, 2, parts)
    weights = [
        load_file(path / "model" / "model.safetensors") for path in sorted((tmp_path / "run" / "checkpoints").iterdir())
    ]
    average = weights[0]
    for now in weights[1:]:
        average = {key: average[key].lerp(now[key], 1 - DECAY) for key in average}
    found = load_file(tmp_path / "run" / "checkpoints" / "step-0000006" / "average" / "model.safetensors")
    assert len(list((whole / "checkpoints").iterdir())) == len(weights)
    assert all(torch.allclose(found[key], average[key], atol=1e-6) for key in average)


@pytest.mark.slow
def test_resumed_muon_is_bit_exact(runs: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", str(runs / "data" / "curated" / "train")
    shutil.copytree(runs / "1-muon", run)
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    run_ranks(train_in_ranks, 1, [tiny_recipe(run, data, *MUON)])
    assert results_of(run) == results_of(runs / "1-muon")


def test_schedules() -> None:
    settings: dict[str, Any] = {"learning_rate": 1.0, "warmup_samples": 10}
    cosine = OptimizerRecipe(**settings)
    wsd = OptimizerRecipe(**settings, schedule="wsd", decay_samples=40)
    constant = OptimizerRecipe(**settings, schedule="constant")
    for schedule in (cosine, wsd, constant):
        assert [rate_factor(schedule, 100, seen) for seen in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert rate_factor(constant, 100, 99) == 1.0
    assert rate_factor(cosine, 100, 55) == pytest.approx(0.5)
    assert [rate_factor(wsd, 100, seen) for seen in (60, 70, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert rate_factor(wsd, 200, 100) == 1.0  # a longer run goes on at the full rate
    with pytest.raises(ValidationError, match="decay_samples"):
        OptimizerRecipe(**settings, schedule="wsd")


def test_layers_near_the_input_learn_slower() -> None:
    names = [
        "hf.vision_model.embeddings.patch_embedding.weight", "hf.vision_model.encoder.layers.0.mlp.fc1.weight",
        "hf.vision_model.encoder.layers.1.mlp.fc1.weight", "hf.vision_model.head.probe", "logit_scale",
        "hf.text_model.embeddings.token_embedding.weight", "hf.text_model.encoder.layer.0.output.dense.weight",
    ]  # fmt: skip
    assert list(depths_of(names).values()) == [3, 2, 1, 0, 0, 2, 1]
    model = nn.ModuleDict(
        {"vision_model": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})}
    )
    recipe = OptimizerRecipe(learning_rate=0.1, layer_decay=0.5, weight_decay=0.3)
    groups = {group.names: (group.learning_rate, group.weight_decay) for group in group_parameters(model, recipe)}
    assert groups == {
        ("vision_model.layers.0.weight",): (0.025, 0.3), ("vision_model.layers.1.weight",): (0.05, 0.3),
        ("vision_model.layers.0.bias",): (0.025, 0.0), ("vision_model.layers.1.bias",): (0.05, 0.0),
    }  # fmt: skip


def test_a_step_of_lamb_is_as_long_as_the_matrix() -> None:
    matrix, vector = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.ones(2))
    groups = [
        {"params": [matrix], "lr": 0.1, "weight_decay": 0.01},
        {"params": [vector], "lr": 0.1, "weight_decay": 0.0},
    ]
    optimizer = Lamb(groups, betas=(0.9, 0.999), eps=1e-8)
    matrix.grad, vector.grad = torch.full((2, 2), 0.5), torch.tensor([2.0, -2.0])
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 2.7))  # 3 - 0.1 * 6 * (1.03 / 2.06) = 2.7
    assert torch.allclose(vector, torch.tensor([0.9, 1.1]))  # Adam's first step: the sign
    assert math.isclose(float(optimizer.state[matrix]["step"]), 1.0)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_a_step_of_muon_is_torchs(shape: tuple[int, int]) -> None:
    """torch computes in bf16, so its steps are near ours, not equal."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
    optimizers = (
        Muon([{"params": [ours], **settings, "is_hidden": True}], (0.9, 0.95), 1e-8),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=0.01)
    assert float((ours.detach() - 1).abs().mean()) > 0.05


def test_muon_takes_the_matrices_of_layers() -> None:
    model = nn.ModuleDict({"vision_model": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})})
    model["head"] = nn.Linear(2, 2)
    recipe = OptimizerRecipe(name="muon", learning_rate=0.1)
    groups = group_parameters(model, recipe)
    assert [group.names for group in groups if group.is_hidden] == [("vision_model.layers.0.weight",)]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(recipe, groups)
    optimizer.step()
    parts: Any = model
    layer, head = parts["vision_model"]["layers"][0], parts["head"]
    assert "exp_avg_sq" not in optimizer.state[layer.weight]
    assert all("exp_avg_sq" in optimizer.state[one] for one in (layer.bias, head.weight, head.bias))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.name=lamb", "zero.stage=1"], "lamb needs whole parameters"),
        (["model.locked=[vision]", "task.patch_dropout=0.5"], "vision tower is locked"),
        (["model.image_size=96"], "resizes a contrastive model that is loaded"),
        (["model.compile=true", "zero.stage=3"], "ZeRO 3 gathers weights in the midst of a layer"),
        (["optimizer.decay_samples=8"], "decay_samples belongs to"),
    ],
)
def test_impossible_settings_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        tiny_recipe("run", "data", *overrides)
