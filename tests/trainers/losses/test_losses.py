"""Losses: equal to the plain forms block by block and over ranks, exact where they are nearly zero, small in memory."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pairloom.trainers.losses.blocks import NUM_COPIES, BlockSettings
from pairloom.trainers.losses.clip import clip_loss
from pairloom.trainers.losses.siglip import siglip_loss
from pairloom.trainers.ranks import rank, world_size
from tests.support.ranks import run_ranks

N, D = 24, 7
SMALL = BlockSettings(5 * 5 * 4 * NUM_COPIES)  # blocks of 5 x 5: N rows and columns make 25, the last ones smaller
Tensors = dict[str, torch.Tensor]


def inputs(seed: int = 0, noise: float = 1.0, log_scale: float = math.log(10), width: int = D) -> Tensors:
    """Features of N pairs, log scale and bias; the smaller `noise`, the nearer a text to its image."""
    generator = torch.Generator().manual_seed(seed)
    image, other = torch.randn(2, N, width, generator=generator)
    text = image + noise * other
    return {
        "image": F.normalize(image, dim=-1),
        "text": F.normalize(text, dim=-1),
        "scale": torch.tensor([log_scale]),
        "bias": torch.tensor([-2.0]),
    }


def plain_clip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_siglip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / len(image)


def ours_clip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return clip_loss(image, text, scale, SMALL)


def ours_siglip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return siglip_loss(image, text, scale, bias, SMALL)


PLAIN = {"clip": plain_clip, "siglip": plain_siglip}
OURS = {"clip": ours_clip, "siglip": ours_siglip}


def differentiate(loss_of: Callable[..., torch.Tensor], values: Tensors, factor: float = 1.0) -> Tensors:
    """The loss, and `factor` times its gradients by name."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    loss = loss_of(leaves["image"], leaves["text"], leaves["scale"].exp(), leaves["bias"])
    (loss * factor).backward()  # type: ignore[no-untyped-call]
    gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach().reshape(1), **gradients}


def assert_equal(found: Tensors, expected: Tensors, rel: float = 1e-6) -> None:
    """Each tensor within `rel` of the other's norm."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = torch.linalg.vector_norm(found[name].double() - tensor.double())
        assert float(error) <= rel * float(torch.linalg.vector_norm(tensor.double())) + 1e-12, name


def assert_exact(name: str, values: Tensors, rel: float = 1e-6) -> Tensors:
    """Ours within `rel` of float64, or at least as near as three times what rounding does to the plain form."""
    exact = differentiate(PLAIN[name], {key: value.double() for key, value in values.items()})
    found, plain = differentiate(OURS[name], values), differentiate(PLAIN[name], values)
    for key, tensor in exact.items():
        error, of_plain = (float((form[key].double() - tensor).norm()) for form in (found, plain))
        assert error <= max(3 * of_plain, rel * float(tensor.norm())), (key, error, of_plain)
    return found


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_blocks_equal_the_plain_form(name: str) -> None:
    assert SMALL.side() == 5
    assert_equal(differentiate(OURS[name], inputs()), differentiate(PLAIN[name], inputs()))
    for log_scale in (0.0, math.log(10), math.log(100)):
        assert_exact(name, inputs(log_scale=log_scale))


@pytest.mark.parametrize(("name", "bias"), [("clip", 0.0), ("siglip", -13.0)])
def test_a_loss_that_is_nearly_zero_keeps_its_digits(name: str, bias: float) -> None:
    """Late in training most pairs are settled, and what is left of the gradient is what is left to learn."""
    values = {**inputs(noise=0.2, log_scale=math.log(20), width=64), "bias": torch.tensor([bias])}
    found = assert_exact(name, values)
    assert 0 < float(found["loss"]) < 0.02
    assert float(found["image"].norm()) > 0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_bf16_features_lose_nothing_in_the_loss(name: str) -> None:
    values = inputs()
    rounded = {key: values[key].bfloat16() if key in ("image", "text") else values[key] for key in values}
    found = differentiate(OURS[name], rounded)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = differentiate(OURS[name], rounded)
    expected = differentiate(PLAIN[name], {key: value.float() for key, value in rounded.items()})
    for key in ("image", "text"):
        assert found[key].dtype == torch.bfloat16
        expected[key] = expected[key].bfloat16()
    assert_equal(found, expected, rel=1e-4)  # the gradient of a bf16 feature is rounded to bf16 at the end
    for key in ("loss", "scale", "bias"):
        assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-6, abs=1e-9)
    assert_equal(under_autocast, found, rel=0)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_feature_that_is_no_number_shows_in_the_loss(name: str) -> None:
    values = inputs()
    values["text"][3, 0] = torch.nan
    assert math.isnan(float(differentiate(OURS[name], values)["loss"]))


def of_one_rank(name: str, seeds: list[int]) -> list[Tensors]:
    """Loss and gradients of this rank's share of each case, as DeepSpeed averages them over ranks."""
    own = slice(rank() * N // world_size(), (rank() + 1) * N // world_size())
    found = []
    for seed in seeds:
        values = inputs(seed)
        values |= {key: values[key][own] for key in ("image", "text")}
        found.append(differentiate(OURS[name], values, factor=1 / world_size()))
    return [{key: value.tolist() for key, value in result.items()} for result in found]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "count"), [("clip", 2), ("clip", 4), ("siglip", 2), ("siglip", 4)])
def test_ranks_equal_one_process(name: str, count: int) -> None:
    seeds = [0, 1]
    by_rank = run_ranks(of_one_rank, count, name, seeds)
    for case, seed in enumerate(seeds):
        parts = [{key: torch.tensor(value) for key, value in results[case].items()} for results in by_rank]
        joined = {key: torch.cat([part[key] for part in parts]) for key in ("image", "text")}
        joined |= {key: torch.stack([part[key] for part in parts]).sum(dim=0) for key in ("scale", "bias")}
        joined["loss"] = torch.stack([part["loss"] for part in parts]).mean(dim=0)
        assert_equal(joined, differentiate(OURS[name], inputs(seed)))


def test_siglip_equals_transformers() -> None:
    from transformers import SiglipConfig, SiglipModel  # not at the top: every spawned rank would load it

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**part, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**part, "image_size": 16, "patch_size": 8}))
    model.logit_scale.data.fill_(math.log(10))
    model.logit_bias.data.fill_(-10.0)
    batch = {"input_ids": torch.randint(0, 30, (6, 8)), "pixel_values": torch.randn(6, 3, 16, 16)}
    output = model(**batch, return_loss=True)
    ours = siglip_loss(output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias)
    names, parameters = zip(*model.named_parameters(), strict=True)
    theirs = torch.autograd.grad(output.loss, parameters, retain_graph=True)
    assert float(ours.detach()) == pytest.approx(float(output.loss.detach()), rel=1e-6)
    for name, mine, other in zip(names, torch.autograd.grad(ours, parameters), theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6), name
