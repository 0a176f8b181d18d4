"""What training leaves out changes nothing: features and gradients are those of the plain class and full texts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from pairloom.schemas.images.preprocess import Preprocess
from pairloom.trainers.models.fast_towers import QuickGelu
from pairloom.trainers.task import TrainSample
from pairloom.trainers.tasks.contrastive import ContrastiveTask
from tests.support.tiny_models import write_tokenizer
from tests.trainers.models.test_towers import TEXT, VISION, make_task


def samples() -> list[TrainSample]:
    """Four pictures with captions of several lengths, the longest far from the tower's."""
    draw = np.random.default_rng(0)
    captions = ["a dog", "a red circle on the left", "x", "a church"]
    return [
        TrainSample(str(index), draw.integers(0, 256, (64, 64, 3), dtype=np.uint8), caption)
        for index, caption in enumerate(captions)
    ]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """By name."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within roundings of the largest gradient."""
    assert found.keys() == expected.keys()
    largest = max(float(one.abs().max()) for one in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_towers_equal_the_plain_class(tmp_path: Path, family: str) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    task = make_task(tmp_path, tmp_path / "tokenizer", preset=f"{family}-test-tiny")
    task.save_model(str(tmp_path / "plain"), task.model.state_dict())
    plain = AutoModel.from_pretrained(tmp_path / "plain").train()
    batch = task._image_inputs(task.collate(samples()))
    features = task.model(batch)
    theirs = plain(**batch)
    expected = [torch.nn.functional.normalize(one, dim=-1) for one in (theirs.image_embeds, theirs.text_embeds)]
    weights = [torch.randn_like(one) for one in expected]
    for ours, other, weight in zip((features.image, features.text), expected, weights, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)
        (ours * weight).sum().backward()  # type: ignore[no-untyped-call]
        (other * weight).sum().backward()
    found = {name.removeprefix("hf."): one for name, one in gradients(task.model).items()}
    assert_near(found, gradients(plain))
    assert any(isinstance(module, QuickGelu) for module in task.model.modules()) == (family == "clip")


def full_length(task: ContrastiveTask, length: int) -> dict[str, torch.Tensor]:
    """The tokens of `samples`, padded to all places of the tower."""
    tokenizer = task._tokenizer
    tokens = tokenizer([one.caption for one in samples()], padding="max_length", max_length=length, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("text", TEXT)
def test_texts_are_as_long_as_the_longest_of_a_batch(tmp_path: Path, text: str) -> None:
    """Nothing is computed for padding, and features and gradients are those of texts of full length."""
    for name, settings in (("vit", VISION["vit"]), (text, TEXT[text])):
        tokenizer = write_tokenizer(tmp_path / name)
        extra = {"vocab_size": len(tokenizer)} if name == text else {}
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(name, **settings, **extra)).save_pretrained(tmp_path / name)
    config = Preprocess(32).processor_config("ViTImageProcessor")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(config))
    task = make_task(tmp_path / "vit", tmp_path / text)
    task.model.eval()  # of BERT and GPT 2: dropout draws by shape
    cut = task._tokens(samples())
    whole = full_length(task, 16)
    longest = int(whole["attention_mask"].sum(dim=1).max())
    assert cut["input_ids"].shape == (4, longest)
    assert longest < 16
    found = []
    for tokens in (cut, whole):
        task.model.zero_grad()
        pooled = task.model.pool_texts(tokens)  # type: ignore[operator]
        (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum().backward()
        found.append((pooled.detach(), {name: one.clone() for name, one in gradients(task.model).items()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=2e-6)
    assert_near(found[0][1], found[1][1])


def test_siglip_sees_its_padding(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    task = make_task(tmp_path, tmp_path, preset="siglip-test-tiny")
    assert task.collate(samples())["input_ids"].shape == (4, 16)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and not torch.cuda.is_available(), reason="inductor needs g++")
def test_compiled_layers_give_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With texts of another length at each step, and in the environment that the launcher makes."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    write_tokenizer(tmp_path)
    losses = []
    for is_compiled in (False, True):
        task = make_task(tmp_path, tmp_path, "clip", preset="clip-test-tiny", compile=is_compiled)
        optimizer = torch.optim.AdamW([{"params": g.parameters, "lr": 1e-3} for g in task.parameter_groups()])
        lengths = set()
        for step in range(3):
            batch = task.collate([replace(one, caption=one.caption + " x" * step) for one in samples()])
            loss, _ = task.loss(task.model, batch, {})
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            lengths.add(batch["input_ids"].shape[1])
        assert len(lengths) == 3
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
