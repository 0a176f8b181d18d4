"""Parameters that the loss does not depend on are frozen, so that results do not depend on the number of ranks."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, Dinov2Config

from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.ranks import run_ranks
from tests.support.tiny_models import write_tokenizer
from tests.support.tiny_runs import BATCH, results_of, tiny_data, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MASK_TOKEN = "vision_model.embeddings.mask_token"  # used by DINOv2's own training only
STAGES = (1, 2, 3)


def write_towers(root: Path) -> None:
    """A DINOv2 with a mask token of ones, and a BERT."""
    tokenizer = write_tokenizer(root / "bert")
    torch.manual_seed(0)
    vision = AutoModel.from_config(Dinov2Config(**BODY, image_size=32, patch_size=8, mlp_ratio=2))
    with torch.no_grad():
        vision.embeddings.mask_token.fill_(1.0)
    vision.save_pretrained(root / "dinov2")
    config = Preprocess(32).processor_config("ViTImageProcessor")
    (root / "dinov2" / "preprocessor_config.json").write_text(json.dumps(config))
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # ranks draw other masks
    text = BertConfig(**BODY, **no_dropout, vocab_size=len(tokenizer), max_position_embeddings=16)
    AutoModel.from_config(text).save_pretrained(root / "bert")


def train_and_log(recipes: Sequence[TrainRecipe]) -> list[str]:
    """Train; returns the log lines about frozen parameters."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pairloom.train")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    train_in_ranks(recipes)
    return [line for line in lines if line.startswith("frozen")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one rank (`1`) and of two ranks at each ZeRO stage (`2-STAGE`), with averaged weights."""
    root = tmp_path_factory.mktemp("runs")
    write_towers(root)
    data = tiny_data(root / "data")
    parts = [
        f"model={{dual: {{vision: {root}/dinov2, text: {root}/bert, projection_dim: 16}}}}",
        "tokenizer={}",
        "optimizer.average_decay=0.5",
        "optimizer.eps=1e-3",  # Adam must not amplify the roundings that the number of ranks changes
        "optimizer.weight_decay=10",
        f"run.checkpoint_every_samples={3 * BATCH}",
    ]
    lines = run_ranks(train_and_log, 1, [tiny_recipe(root / "1", data, *parts)])
    (root / "log").write_text(json.dumps(lines[0]))
    two = [tiny_recipe(root / f"2-{stage}", data, *parts, f"zero.stage={stage}") for stage in STAGES]
    run_ranks(train_and_log, 2, two)
    shutil.copytree(root / "2-1", root / "resumed")
    shutil.rmtree(root / "resumed" / "checkpoints" / "step-0000006")
    run_ranks(train_and_log, 2, [tiny_recipe(root / "resumed", data, *parts, "zero.stage=1")])
    return root


def test_one_line_names_them(runs: Path) -> None:
    lines = json.loads((runs / "log").read_text())
    assert lines == [f"frozen, for the loss does not depend on them: hf.{MASK_TOKEN}"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("folder", ["export", "checkpoints/step-0000006/average"])
def test_exports_of_one_and_two_ranks_are_equal(runs: Path, stage: int, folder: str) -> None:
    one, two = (load_file(runs / name / folder / "model.safetensors") for name in ("1", f"2-{stage}"))
    assert torch.equal(one[MASK_TOKEN], torch.ones_like(one[MASK_TOKEN]))
    assert torch.equal(two[MASK_TOKEN], one[MASK_TOKEN])
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-4, atol=2e-5), name


def test_a_resumed_run_has_the_same_bits(runs: Path) -> None:
    assert results_of(runs / "resumed") == results_of(runs / "2-1")
