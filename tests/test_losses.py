"""Losses: equal to the references, and the same loss and gradients over ranks as in one process."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.ranks import run_ranks
from trainers.distributed import rank, world_size
from trainers.losses.clip import clip_loss
from trainers.losses.siglip import siglip_loss

N, D = 8, 5


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, N, D, generator=generator)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def losses_and_gradients(name: str) -> dict[str, list[float]]:
    """Loss and gradients of this rank's share, made global as DeepSpeed does: the mean over ranks."""
    image_ND, text_ND = features()
    own = slice(rank() * N // world_size(), (rank() + 1) * N // world_size())
    image = image_ND[own].clone().requires_grad_()
    text = text_ND[own].clone().requires_grad_()
    scale = torch.tensor([math.log(10)], requires_grad=True)
    bias = torch.tensor([-2.0], requires_grad=True)
    loss = clip_loss(image, text, scale.exp()) if name == "clip" else siglip_loss(image, text, scale.exp(), bias)
    loss.backward()
    none = torch.zeros(1)
    return {
        "loss": [float(loss.detach())],
        "image": (image.grad / world_size()).flatten().tolist(),  # type: ignore[operator]
        "text": (text.grad / world_size()).flatten().tolist(),  # type: ignore[operator]
        "scale": (scale.grad / world_size()).tolist(),  # type: ignore[operator]
        "bias": ((none if bias.grad is None else bias.grad) / world_size()).tolist(),
    }


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = losses_and_gradients(name)
    monkeypatch.setattr(f"trainers.losses.{name}.BLOCK_ROWS", 3)
    for key, values in losses_and_gradients(name).items():
        assert values == pytest.approx(whole[key], rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize(("name", "count"), [("clip", 2), ("siglip", 4)])
def test_ranks_equal_one_process(name: str, count: int) -> None:
    whole = losses_and_gradients(name)
    parts = run_ranks(losses_and_gradients, count, name)
    assert sum(part["loss"][0] for part in parts) / count == pytest.approx(whole["loss"][0], rel=1e-6)
    for key in ("image", "text"):
        joined = [value for part in parts for value in part[key]]
        assert joined == pytest.approx(whole[key], rel=1e-4, abs=1e-7)
    for key in ("scale", "bias"):
        total = sum(part[key][0] for part in parts)
        assert total == pytest.approx(whole[key][0], rel=1e-5, abs=1e-7)


def test_siglip_equals_transformers() -> None:
    from transformers import SiglipConfig, SiglipModel  # not at the top: every spawned rank would load it

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**part, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**part, "image_size": 16, "patch_size": 8}))
    model.logit_scale.data.fill_(math.log(10))
    model.logit_bias.data.fill_(-10.0)
    inputs = {"input_ids": torch.randint(0, 30, (6, 8)), "pixel_values": torch.randn(6, 3, 16, 16)}
    output = model(**inputs, return_loss=True)
    ours = siglip_loss(output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias)
    assert float(ours.detach()) == pytest.approx(float(output.loss.detach()), rel=1e-6)


def test_clip_equals_the_plain_form() -> None:
    image, text = features()
    logits = 14.3 * image @ text.T
    labels = torch.arange(N)
    plain = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert float(clip_loss(image, text, torch.tensor([14.3]))) == pytest.approx(float(plain), rel=1e-6)
