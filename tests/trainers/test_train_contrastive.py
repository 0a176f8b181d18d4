"""Contrastive runs from end to end: loss curves, what is exported, what is locked, what is refused."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from pairloom.schemas.errors import PairloomError
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.images.preprocess import Preprocess, load_preprocess
from pairloom.schemas.recipes.train import DataSource, TrainRecipe
from pairloom.trainers.data.dataset import open_pairs
from pairloom.trainers.models.contrastive import CLIP_MEAN, CLIP_STD
from pairloom.trainers.tasks.contrastive import ContrastiveTask
from tests.support.curated_builder import build_curated
from tests.support.ranks import run_ranks
from tests.support.raw_builder import encoded
from tests.support.shared_data import REPOSITORY
from tests.support.tiny_models import write_siglip
from tests.support.tiny_runs import BATCH, metrics_of, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow

GOLDEN = REPOSITORY / "tests" / "golden" / "loss_curves.json"
NUM_STEPS = 20
LENGTH = f"run.total_samples={NUM_STEPS * BATCH}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one rank below one folder."""
    root = tmp_path_factory.mktemp("runs")
    data = build_curated(root / "data", squares())
    write_siglip(root / "tower")
    export = f"model={{path: {root / 'tower'}, locked: [vision]}}"
    crops = "data.augment.random_resized_crop=[0.5, 1.0]"
    recipes = {
        "siglip": [LENGTH],
        "clip": [LENGTH, "task.loss=clip", "model.preset=clip-test-tiny"],
        "bf16": ["precision=bf16"],
        "crops": ["data.num_workers=2", crops],
        "locked": [export, "tokenizer={}", "zero.stage=2"],
        "next": [f"init_from={root / 'siglip' / 'export'}", "task.initial_logit_scale=2.0"],
    }
    run_ranks(train_in_ranks, 1, [tiny_recipe(root / name, data, *parts) for name, parts in recipes.items()])
    return root


def squares() -> list[tuple[bytes, str]]:
    """Pictures of the size that the model sees, in a format without loss: every machine trains on the same pixels."""
    draw = np.random.default_rng(0)
    coarse = [draw.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(48)]
    return [
        (encoded(pixels.repeat(8, axis=0).repeat(8, axis=1), "PNG"), f"picture {n} of soft blobs number {n * 7 % 13}")
        for n, pixels in enumerate(coarse)
    ]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in metrics_of(run)]


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_golden_loss_curve(root: Path, name: str) -> None:
    golden: Mapping[str, list[float]] = json.loads(GOLDEN.read_text())
    # Processors with other vectors sum in another order: 5e-7 at most with those of AVX2, SSE4 or none.
    assert losses(root / name) == pytest.approx(golden[name], rel=1e-5)


def test_metrics_have_the_documented_keys(root: Path) -> None:
    record = metrics_of(root / "siglip")[-1]
    promised = (
        "step samples_seen loss learning_rate logit_scale grad_norm samples_per_s data_wait_fraction memory_bytes"
    )
    assert set(promised.split()) <= record.keys()
    assert record["samples_seen"] == NUM_STEPS * BATCH
    assert list((root / "siglip" / "tb").iterdir())


@pytest.mark.parametrize("name", ["siglip", "clip", "locked"])
def test_the_export_gives_the_features_of_the_trained_model(root: Path, name: str) -> None:
    receipt = json.loads((root / name / "export" / "receipt.json").read_text())
    assert receipt["largest_output_difference"] < 1e-5
    model = AutoModel.from_pretrained(root / name / "export")
    tokenizer = AutoTokenizer.from_pretrained(root / name / "export")
    places = model.config.text_config.max_position_embeddings
    assert tokenizer.model_max_length == places
    dataset = open_pairs(DataSource(path=str(root / "data" / "curated" / "train")))
    raw = dataset.read(0, 0)
    preprocess = load_preprocess(str(root / name / "export"))
    pixels = preprocess.normalise(preprocess.resize(decode_rgb(raw.image or b""))[None])
    tokens = tokenizer([raw.caption], padding="max_length", max_length=places, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=tokens["input_ids"], pixel_values=torch.from_numpy(pixels))
    assert output.image_embeds.shape == output.text_embeds.shape
    assert torch.isfinite(output.logits_per_image).all()


def test_bf16_is_near_fp32(root: Path) -> None:
    assert losses(root / "bf16")[0] == pytest.approx(losses(root / "siglip")[0], rel=0.02)
    weights = load_file(root / "bf16" / "export" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_a_locked_tower_stays_as_it_was(root: Path) -> None:
    before = load_file(root / "tower" / "model.safetensors")
    after = load_file(root / "locked" / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("vision_model."), name


def test_the_next_round_begins_with_the_export(root: Path) -> None:
    assert losses(root / "next")[0] < losses(root / "siglip")[0] / 2
    assert metrics_of(root / "next")[0]["logit_scale"] == pytest.approx(np.exp(2.0))
    provenance = json.loads((root / "next" / "export" / "provenance.json").read_text())
    assert provenance["parent"]["recipe"]["run"]["dir"] == str(root / "siglip")


def test_augmentation_changes_pixels(root: Path) -> None:
    assert losses(root / "crops")[0] != losses(root / "siglip")[0]


def test_pixels_are_normalised_as_by_the_processor() -> None:
    task = ContrastiveTask.__new__(ContrastiveTask)
    task.preprocess = Preprocess(8, mean=CLIP_MEAN, std=CLIP_STD)
    pixels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    found = task._image_inputs({"pixels": torch.from_numpy(pixels)})
    assert np.array_equal(found["pixel_values"].numpy(), task.preprocess.normalise(pixels))


def messages(recipes: Sequence[TrainRecipe], errors: type[PairloomError]) -> list[str]:
    """Error message of each recipe."""
    found = []
    for recipe in recipes:
        try:
            train_in_ranks([recipe])
        except errors as error:
            found.append(str(error))
    return found


def test_wrong_recipes_are_refused(root: Path) -> None:
    data = str(root / "data" / "curated" / "train")
    cases: dict[str, list[str]] = {
        "no preset siglip-vit-b-61": ["model.preset=siglip-vit-b-61"],
        "tokenizer: give path, or train": ["tokenizer={}"],
        "no complete data set": ["data.train.0.path=/nowhere/curated/train"],
        "another tokenizer": [f"model={{path: {root / 'tower'}}}"],
    }
    recipes = {part: tiny_recipe(root / f"bad{i}", data, *cases[part]) for i, part in enumerate(cases)}
    errors = run_ranks(messages, 1, list(recipes.values()), PairloomError)[0]
    assert len(errors) == len(recipes)
    for part, message in zip(recipes, errors, strict=True):
        assert part in message


def train_with_faulty_loss(
    recipes: Sequence[TrainRecipe], corrupt: Callable[[torch.Tensor], torch.Tensor]
) -> list[str]:
    """Train with a loss that is wrong at the third step (the first call is the probe); returns the errors."""
    from pairloom.trainers.tasks.contrastive import ContrastiveTask

    honest, calls = ContrastiveTask.loss, []

    def loss(self: Any, engine: Any, batch: Any, counts: Any) -> Any:
        value, figures = honest(self, engine, batch, counts)
        calls.append(batch)
        return (corrupt(value) if len(calls) % 4 == 0 else value), figures

    ContrastiveTask.loss = loss  # type: ignore[method-assign]
    logging.disable(logging.ERROR)
    return messages(recipes, PairloomError)


def no_number(loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def no_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same loss, with a gradient that is no number."""
    return loss + (loss * 0).sqrt()


@pytest.mark.parametrize(
    ("corrupt", "words"), [(no_number, "the loss is nan"), (no_gradient, "the norm of the gradients")]
)
def test_nan_stops_the_run(root: Path, corrupt: Any, words: str) -> None:
    data, length = str(root / "data" / "curated" / "train"), f"run.checkpoint_every_samples={2 * BATCH}"
    folders = [root / f"{corrupt.__name__}-{stage}" for stage in (0, 3)]
    recipes = [tiny_recipe(folder, data, length, f"zero.stage={folder.name.split('-')[1]}") for folder in folders]
    uids = open_pairs(DataSource(path=recipes[0].data.train[0].path)).rows_by_uid()
    for folder, message in zip(folders, run_ranks(train_with_faulty_loss, 2, recipes, corrupt)[0], strict=True):
        assert words in message
        assert "at step 3" in message
        assert f"{folder.name}/checkpoints/step-0000002" in message
        assert any(uid in message for uid in uids)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000002"]
