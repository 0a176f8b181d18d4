"""SigLIP 2 runs with NaFlex: one process or many, whole or interrupted, from a square run, and what is exported."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, Siglip2Model, Siglip2Processor, SiglipModel

from pairloom.pipelines.signals.models.clip import ClipModel
from pairloom.schemas.errors import InputError, PairloomError
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.evaluate.run import evaluate
from pairloom.trainers.export.open_clip import export as export_open_clip
from tests.support.curated_builder import build_curated
from tests.support.ranks import run_ranks
from tests.support.raw_builder import encoded, photograph
from tests.support.tiny_models import write_siglip
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow
NUM_PATCHES = (9, 16, 36)
NAFLEX = f"model={{preset: siglip2-test-tiny, num_patches: {list(NUM_PATCHES)}}}"
HALF = f"run.checkpoint_every_samples={3 * BATCH}"
CACHED = "batch.micro_batch_size=2"
TWO = {
    "z0": ["zero.stage=0"],
    "z1": ["zero.stage=1", "data.num_workers=2", "optimizer.average_decay=0.6"],
    "z2": ["zero.stage=2", CACHED],
    "z3": ["zero.stage=3", CACHED],
    "checkpointed": [f"{NAFLEX[:-1]}, activation_checkpointing: true}}"],
}


def pictures(num: int) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Of many shapes."""
    return [photograph(seed, 20 + 9 * (seed % 13), 90 - 5 * (seed % 11)) for seed in range(num)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs below one folder."""
    root = tmp_path_factory.mktemp("runs")
    data = build_curated(
        root / "data", [(encoded(pixels), f"Picture {i} of blob {i * 7 % 13}") for i, pixels in enumerate(pictures(48))]
    )
    retrieval = f"evaluate=[{{kind: retrieval, data: {data}, num_patches: 25}}]"
    square = root / "square" / "export"
    one = {
        "one": [NAFLEX, HALF, retrieval],
        "square": ["model.preset=siglip2-test-tiny"],
        "later": [f"init_from={square}", NAFLEX, "zero.stage=0"],
        "further": [f"model={{path: {root / 'one' / 'export'}}}", "tokenizer={}"],
        "bf16": [NAFLEX, "precision=bf16"],
    }
    run_ranks(train_in_ranks, 1, [tiny_recipe(root / name, data, *parts) for name, parts in one.items()])
    run_ranks(train_in_ranks, 2, [tiny_recipe(root / name, data, NAFLEX, *parts) for name, parts in TWO.items()])
    shutil.copytree(root / "one", root / "resumed")
    shutil.rmtree(root / "resumed" / "checkpoints" / "step-0000006")
    run_ranks(train_in_ranks, 1, [tiny_recipe(root / "resumed", data, *one["one"])])
    return root


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_equal_one_process(root: Path, name: str) -> None:
    one, two = metrics_of(root / "one"), metrics_of(root / name)
    assert [record["num_patches"] for record in two] == [record["num_patches"] for record in one]
    for field, tolerance in (("loss", 1e-6), ("sample_checksum", 0), ("grad_norm", 1e-5)):
        assert [record[field] for record in two] == pytest.approx([record[field] for record in one], rel=tolerance)


def test_numbers_of_patches_are_drawn_and_the_loss_falls(root: Path) -> None:
    records = metrics_of(root / "one")
    assert len(records) == 6
    assert {record["num_patches"] for record in records} == set(NUM_PATCHES)
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert metrics_of(root / "bf16")[0]["loss"] == pytest.approx(records[0]["loss"], rel=0.02)


def test_interrupted_run_is_bit_exact(root: Path) -> None:
    assert results_of(root / "resumed") == results_of(root / "one")
    weights = [load_file(root / name / "export" / "model.safetensors") for name in ("one", "resumed")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_naflex_run_starts_from_a_fixed_size_run(root: Path) -> None:
    square, later = (AutoModel.from_pretrained(root / name / "export") for name in ("square", "later"))
    assert (type(square), type(later)) == (SiglipModel, Siglip2Model)
    assert json.loads((root / "square" / "export" / "preprocessor_config.json").read_text())["resample"] == 2
    assert later.config.vision_config.num_patches == 16
    assert metrics_of(root / "later")[0]["loss"] < metrics_of(root / "square")[0]["loss"] / 2
    assert metrics_of(root / "further")[0]["loss"] < metrics_of(root / "one")[0]["loss"] / 2
    assert {record["num_patches"] for record in metrics_of(root / "further")} == {36}


@pytest.mark.parametrize("name", ["one", "later", "further"])
def test_the_export_loads_with_plain_transformers(root: Path, name: str) -> None:
    folder = root / name / "export"
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["model_class"] == "Siglip2Model"
    assert receipt["largest_output_difference"] < 1e-5
    assert receipt["largest_pixel_difference"] < 1e-6
    assert receipt["num_texts_that_differ"] == 0
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Siglip2Processor)
    assert processor.image_processor.max_num_patches == 36
    texts, images = ["A Picture of blob 3", "東京"], pictures(3)
    inputs = processor(text=texts, images=[Image.fromarray(image) for image in images], return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 256, 768), "Siglip2Processor takes 256 whatever the folder says"
    encoder = DualEncoder(str(folder), num_patches=256)
    assert torch.equal(inputs["input_ids"], encoder.tokenize([text.lower() for text in texts])["input_ids"].cpu())
    assert "attention_mask" not in inputs
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder)(**inputs)
    assert torch.allclose(output.text_embeds, encoder.text_features(texts), atol=1e-6)


def test_signals_score_as_evaluation_does(root: Path, tmp_path: Path) -> None:
    folder, images = str(root / "one" / "export"), pictures(3)
    scorer, encoder = ClipModel(folder, "cpu"), DualEncoder(folder)
    inputs = encoder.preprocess.model_inputs([encoder.preprocess.resize(image) for image in images])
    with torch.no_grad():
        pooled = encoder.model.get_image_features(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    expected = torch.nn.functional.normalize(pooled.pooler_output, dim=-1)
    found = scorer.image_features([scorer.image_inputs(image) for image in images])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        scorer.text_features(scorer.text_inputs(["A dog"])), encoder.text_features(["a dog"]).numpy(), atol=1e-6
    )


def test_evaluation_uses_the_requested_number_of_patches(root: Path) -> None:
    folder, data = str(root / "one" / "export"), str(root / "data" / "curated" / "train")
    logged = [json.loads(line) for line in (root / "one" / "evaluations.jsonl").read_text().splitlines()]
    found = [evaluate(folder, "retrieval", data, num_patches=number) for number in (None, 25, 100)]
    assert [line["num_patches"] for line in logged] == [25]
    recalls = [{key: value for key, value in one.items() if "recall" in key} for one in [*found, logged[0]]]
    assert recalls[1] == recalls[3]
    assert DualEncoder(folder).preprocess.num_patches == 36  # type: ignore[union-attr]
    with pytest.raises(InputError, match="num_patches is for NaFlex"):
        evaluate(str(root / "square" / "export"), "retrieval", data, num_patches=25)


def test_open_clip_cannot_hold_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is siglip2; use --format hf"):
        export_open_clip(str(root / "one"), str(tmp_path))


def messages(recipes: Sequence[TrainRecipe]) -> list[str]:
    """Error message of each recipe."""
    found = []
    for recipe in recipes:
        try:
            train_in_ranks([recipe])
        except PairloomError as error:
            found.append(str(error))
    return found


def test_wrong_recipes_are_refused(root: Path) -> None:
    byte_level = write_siglip(root / "byte-level", patch_size=16)
    cases = {
        "Siglip2Tokenizer (Gemma's kind)": [f"model={{path: {byte_level}, num_patches: [16]}}", "tokenizer={}"],
        "NaFlex is for SigLIP, this is a clip": ["model={preset: clip-test-tiny, num_patches: [16]}"],
        "patches of 32 px": ["model={preset: siglip-demo, num_patches: [16]}"],
        "not for the towers of a siglip2": [NAFLEX, "task.patch_dropout=0.5"],
        "model.image_size: NaFlex takes images of any size": [
            f"model={{path: {root / 'one' / 'export'}, image_size: 96}}",
            "tokenizer={}",
        ],
    }
    data = str(root / "data" / "curated" / "train")
    recipes = [tiny_recipe(root / f"bad{i}", data, *parts) for i, parts in enumerate(cases.values())]
    errors = run_ranks(messages, 1, recipes)[0]
    assert len(errors) == len(recipes)
    for part, message in zip(cases, errors, strict=True):
        assert part in message
