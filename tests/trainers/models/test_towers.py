"""Any vision tower with any text tower: each trains, is exported, and plain transformers gives the same features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, VisionTextDualEncoderModel

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import DualParts, TrainRecipe
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.export.receipt import make_receipt
from pairloom.trainers.models.positions import resize_images
from pairloom.trainers.models.towers import join_towers
from pairloom.trainers.task import TrainSample
from pairloom.trainers.tasks.contrastive import ContrastiveTask
from tests.support.tiny_models import TEXTS, write_clip, write_siglip, write_tokenizer

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "image_size": 32}
VISION: dict[str, dict[str, Any]] = {
    "vit": {**BODY, **PATCHES},
    "swin": SWIN,
    "swinv2": SWIN,
    "dinov2": {**BODY, **PATCHES, "mlp_ratio": 2},
    "dinov3_vit": {**BODY, **PATCHES},
    "dinov3_convnext": STAGES,
    "beit": {**BODY, **PATCHES, "use_relative_position_bias": True},
    "convnext": STAGES,
    "clip_vision_model": {**BODY, **PATCHES},
    "siglip_vision_model": {**BODY, **PATCHES},
}
TEXT: dict[str, dict[str, Any]] = {
    "bert": {**BODY, "max_position_embeddings": 16},
    "roberta": {**BODY, "max_position_embeddings": 18, "pad_token_id": 0},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 16},
    "clip_text_model": {
        **BODY,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "llama": {**BODY, "num_key_value_heads": 2, "max_position_embeddings": 16},
}
PAIRS = [(vision, "bert") for vision in VISION] + [("vit", text) for text in TEXT if text != "bert"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights for each tower."""
    root = tmp_path_factory.mktemp("towers")
    for name, settings in {**VISION, **TEXT}.items():
        torch.manual_seed(0)
        folder = root / name
        tokenizer = write_tokenizer(folder)
        extra = {"vocab_size": len(tokenizer)} if name in TEXT else {}
        AutoModel.from_config(AutoConfig.for_model(name, **settings, **extra)).save_pretrained(folder)
        if name in VISION:
            config = Preprocess(32).processor_config("ViTImageProcessor")
            (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return root


def make_task(vision: Path, text: Path, loss: str = "siglip", **model: Any) -> ContrastiveTask:
    settings = {
        "run": {"dir": "unused", "total_samples": 8},
        "task": {"kind": "contrastive", "loss": loss},
        "model": model or {"dual": {"vision": str(vision), "text": str(text), "projection_dim": 24}},
        "data": {"train": [{"path": "unused"}]},
        "batch": {"global_batch_size": 8},
        "optimizer": {"learning_rate": 3e-3},
    }
    return ContrastiveTask(parse_recipe(settings, TrainRecipe, where="test"), str(text))


def train(task: ContrastiveTask, num_steps: int) -> list[float]:
    """Steps on the same eight pairs; gives their losses."""
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(8)]
    captions = [f"{TEXTS[index % len(TEXTS)]} {index}" for index in range(8)]
    samples = [TrainSample(str(index), pixels[index], captions[index]) for index in range(8)]
    groups = [{"params": group.parameters, "lr": group.learning_rate} for group in task.parameter_groups()]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(num_steps):
        loss, _ = task.loss(task.model, task.collate(samples), {})
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_any_two_towers(towers: Path, tmp_path: Path, vision: str, text: str) -> None:
    task = make_task(towers / vision, towers / text)
    losses = train(task, 6)
    assert losses[-1] < losses[0]
    moved = [name for name, parameter in task.model.named_parameters() if parameter.grad is not None]
    assert any("vision_model" in name for name in moved)
    assert any("text_model" in name for name in moved)
    task.save_model(str(tmp_path), task.model.state_dict())
    receipt = make_receipt(str(tmp_path), str(tmp_path), str(towers / text))
    assert receipt["model_class"] == "VisionTextDualEncoderModel"
    assert receipt["largest_output_difference"] == 0
    assert receipt["largest_pixel_difference"] < 1e-6


@pytest.mark.parametrize("text", ["bert", "gpt2", "distilbert"])
def test_plain_transformers_gives_the_features_of_training(towers: Path, tmp_path: Path, text: str) -> None:
    """By the lines of docs/explanation/models.md for text towers without a pooler."""
    task = make_task(towers / "vit", towers / text)
    train(task, 1)
    task.save_model(str(tmp_path), task.model.state_dict())
    texts = ["a red circle", "two golf balls and a parachute"]
    plain = VisionTextDualEncoderModel.from_pretrained(tmp_path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        if text == "bert":
            features = plain.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            features = features.pooler_output
        else:
            states = plain.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            place = tokens.attention_mask.sum(1) - 1 if text == "gpt2" else 0
            features = plain.text_projection(states[torch.arange(2), place])
    features = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(DualEncoder(str(tmp_path)).text_features(texts), features)
    together = task._tokens([TrainSample("", None, each) for each in texts])
    with torch.no_grad():
        pooled = task._model.eval().pool_texts(together)
        trained = torch.nn.functional.normalize(task._model._project("text_projection", pooled), dim=-1)
    torch.testing.assert_close(trained, features)


def test_the_bias_of_a_dual_encoder_is_kept(towers: Path, tmp_path: Path) -> None:
    """Its class has no place for it: config.json has, and the next run goes on with it."""
    task = make_task(towers / "vit", towers / "bert")
    train(task, 3)
    task.save_model(str(tmp_path), task.model.state_dict())
    bias = float(task._model.logit_bias.detach())
    assert bias != -10.0
    assert AutoConfig.from_pretrained(tmp_path).logit_bias == bias
    again = make_task(tmp_path, tmp_path, path=str(tmp_path))
    assert float(again._model.logit_bias.detach()) == bias
    clip = make_task(towers / "vit", towers / "bert", loss="clip")
    clip.save_model(str(tmp_path / "clip"), clip.model.state_dict())
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "clip"), "logit_bias")


def test_a_tokenizer_without_padding(towers: Path, tmp_path: Path) -> None:
    """GPT's has none: what pads is hidden by the mask."""
    folder = shutil.copytree(towers / "gpt2", tmp_path / "gpt2")
    write_tokenizer(folder, pads=False)
    task = make_task(towers / "vit", folder)
    assert train(task, 3)[-1] > 0
    task.save_model(str(tmp_path / "out"), task.model.state_dict())
    encoder = DualEncoder(str(tmp_path / "out"))
    alone, beside = encoder.text_features(["a dog"]), encoder.text_features(["a dog", TEXTS[1]])
    torch.testing.assert_close(alone[0], beside[0])


def test_towers_out_of_models_with_two(tmp_path: Path) -> None:
    clip, siglip = write_clip(tmp_path / "clip"), write_siglip(tmp_path / "siglip")
    model, preprocess = join_towers(DualParts(vision=str(siglip), text=str(clip), projection_dim=24))
    assert type(model.vision_model).__name__ == "SiglipVisionModel"
    assert type(model.text_model).__name__ == "CLIPTextModel"
    assert preprocess == Preprocess(32)
    with pytest.raises(RecipeError, match=r"model\.dual\.text: .*AutoModel does not build"):
        join_towers(DualParts(vision=str(clip), text=str(siglip)))


def test_towers_on_the_wrong_side(towers: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.dual\.vision: .*bert, which is no vision tower"):
        join_towers(DualParts(vision=str(towers / "bert"), text=str(towers / "vit")))


@pytest.mark.parametrize("vision", VISION)
def test_images_of_another_size(towers: Path, tmp_path: Path, vision: str) -> None:
    parts = DualParts(vision=str(towers / vision), text=str(towers / "bert"))
    if vision == "beit":
        with pytest.raises(RecipeError, match="relative_position_bias_table belongs to 32 px"):
            join_towers(parts, 64)
        return
    model, preprocess = join_towers(parts)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.vision_model.state_dict().items()}
    larger = resize_images(model, preprocess, 64)
    assert larger.size == 64
    changed = [name for name, tensor in model.vision_model.state_dict().items() if tensor.shape != before[name].shape]
    assert len(changed) == (1 if vision in ("vit", "dinov2", "clip_vision_model", "siglip_vision_model") else 0)
    assert all(
        torch.equal(t, before[name]) for name, t in model.vision_model.state_dict().items() if name not in changed
    )
    model.save_pretrained(tmp_path)
    shutil.copy(towers / "bert/tokenizer.json", tmp_path)
    again = VisionTextDualEncoderModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [one.get_image_features(pixel_values=pixels).pooler_output for one in (model.eval(), again)]
    torch.testing.assert_close(*features)
