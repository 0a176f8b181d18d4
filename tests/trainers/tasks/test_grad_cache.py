"""GradCache gives the gradients of all samples at once, with the same random draws in both of its forwards."""

import pytest
import torch
from torch import nn
from transformers import CLIPModel, SiglipModel

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.losses.clip import clip_loss
from pairloom.trainers.losses.siglip import siglip_loss
from pairloom.trainers.models.contrastive import ContrastiveModel, Features
from pairloom.trainers.models.presets import preset_config
from pairloom.trainers.task import Batch
from pairloom.trainers.tasks.contrastive import check_batch_statistics
from pairloom.trainers.tasks.contrastive_recipe import ContrastiveRecipe
from pairloom.trainers.tasks.grad_cache import cached_step
from tests.support.tiny_runs import tiny_recipe

NUM_SAMPLES, MICRO, NUM_STEPS = 12, 4, 3


def model_of(loss: str, dropout: float) -> ContrastiveModel:
    torch.manual_seed(0)
    recipe = ContrastiveRecipe(kind="contrastive", loss=loss)  # type: ignore[arg-type]
    sizes = {"image_size": 16, "patch_size": 8, "text_length": 8}
    towers = {tower: {"attention_dropout": dropout} for tower in ("vision", "text")}
    config = preset_config(f"{loss}-test-tiny", {**sizes, **towers}, 30, {"bos": 0, "eos": 2, "pad": 1})
    hf = CLIPModel(config) if loss == "clip" else SiglipModel(config)
    return ContrastiveModel(hf, recipe, is_new=True)


def batches_of(step: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(NUM_SAMPLES, 3, 16, 16, generator=generator)
    ids = torch.randint(3, 30, (NUM_SAMPLES, 8), generator=generator)
    ids[:, -1] = 2  # end of text
    return [
        {"pixel_values": pixels[start : start + MICRO], "input_ids": ids[start : start + MICRO]}
        for start in range(0, NUM_SAMPLES, MICRO)
    ]


def loss_of(features: Features, loss: str) -> torch.Tensor:
    image, text, scale, bias = features
    return clip_loss(image, text, scale) if loss == "clip" else siglip_loss(image, text, scale, bias)


def train(loss: str, dropout: float, how: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps, and the parameters behind them."""
    model = model_of(loss, dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
    losses = []
    for step in range(NUM_STEPS):
        torch.manual_seed(step)
        batches = batches_of(step)
        optimizer.zero_grad()
        if how == "cached":
            value, _ = cached_step(batches, model, lambda features: loss_of(features, loss), backward)
        else:
            if how == "whole":
                batches = [{name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}]
            parts = [model(batch) for batch in batches]  # all graphs are held at once
            image, text = torch.cat([part.image for part in parts]), torch.cat([part.text for part in parts])
            value = loss_of(Features(image, text, parts[0].logit_scale, parts[0].logit_bias), loss)
            backward(value)
        losses.append(float(value.detach()))
        optimizer.step()
    return losses, dict(model.named_parameters())


def backward(value: torch.Tensor) -> bool:
    value.backward()  # type: ignore[no-untyped-call]
    return True


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize(("dropout", "reference"), [(0.0, "whole"), (0.4, "parts")])
def test_the_cache_changes_nothing(loss: str, dropout: float, reference: str) -> None:
    losses, parameters = train(loss, dropout, "cached")
    expected, expected_parameters = train(loss, dropout, reference)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, expected_parameters[name], rtol=1e-5, atol=1e-6), name
    assert not torch.equal(parameters["logit_scale"], model_of(loss, dropout).logit_scale)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_own_losses_join_in_the_second_pass(dropout: float) -> None:
    def own_loss(features: Features, batch: Batch) -> torch.Tensor:
        return (features.image[:, 0] * batch["input_ids"].float().mean()).sum() / NUM_SAMPLES

    cached, direct = model_of("clip", dropout), model_of("clip", dropout)
    torch.manual_seed(0)
    value, _ = cached_step(batches_of(0), cached, lambda found: loss_of(found, "clip"), backward, own_loss)
    torch.manual_seed(0)
    batches = batches_of(0)
    parts = [direct(batch) for batch in batches]
    image, text = torch.cat([part.image for part in parts]), torch.cat([part.text for part in parts])
    expected = loss_of(Features(image, text, parts[0].logit_scale, parts[0].logit_bias), "clip")
    expected = expected + sum(own_loss(part, batch) for part, batch in zip(parts, batches, strict=True))
    backward(expected)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for (name, one), two in zip(cached.named_parameters(), direct.parameters(), strict=True):
        if two.grad is not None:
            assert one.grad is not None
            assert torch.allclose(one.grad, two.grad, rtol=1e-5, atol=1e-6), name


def test_dropout_is_drawn() -> None:
    assert train("clip", 0.4, "cached")[0] != train("clip", 0.0, "cached")[0]


def test_statistics_of_a_batch_cannot_be_cached() -> None:
    cut, whole = (tiny_recipe("run", "data", f"batch.micro_batch_size={size}") for size in (2, 8))
    tower = nn.Sequential(nn.BatchNorm1d(2))
    check_batch_statistics(whole, tower)
    check_batch_statistics(cut, tower.eval())
    with pytest.raises(RecipeError, match="0 normalises over the samples of a forward"):
        check_batch_statistics(cut, tower.train())
