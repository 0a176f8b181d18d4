"""Presets have the sizes that the papers give them, counted on models without memory."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, SiglipModel

from pairloom.trainers.models.presets import PRESETS, preset_config

TOKENS = {"bos": 0, "eos": 2, "pad": 1}
MILLIONS = {  # vision tower without a head
    "ti": 5.5, "s": 22, "b": 86, "l": 304, "h": 632, "g": 1011, "siglip2-g": 1134, "bigg": 1843, "so400m": 413,
}  # fmt: skip
GFLOPS = {
    ("clip-vit-b-32", 32): 4.4, ("clip-vit-b-16", 16): 17.6, ("clip-vit-l-14", 16): 61.6, ("clip-vit-h-14", 14): 167,
}  # fmt: skip


def model_of(name: str, **overrides: int) -> CLIPModel | SiglipModel:
    config = preset_config(name, overrides, 32_000, TOKENS)
    config._attn_implementation = "eager"  # products that are counted
    with torch.device("meta"):
        return CLIPModel(config) if config.model_type == "clip" else SiglipModel(config)


@pytest.mark.parametrize("name", [name for name in PRESETS if "test" not in name and "demo" not in name])
def test_parameters(name: str) -> None:
    size = name.split("-")[1] if "so400m" in name else name.split("-")[2]
    size = "siglip2-g" if name == "siglip2-vit-g-16" else size
    vision = model_of(name).vision_model
    millions = sum(p.numel() for part, p in vision.named_parameters() if not part.startswith("head.")) / 1e6
    assert millions == pytest.approx(MILLIONS[size], rel=0.02)


@pytest.mark.parametrize(("name", "patch_size"), GFLOPS)
def test_gflops(name: str, patch_size: int) -> None:
    """Multiply-adds of one picture, as the papers count them."""
    vision = model_of(name, patch_size=patch_size, image_size=224).vision_model
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vision(pixel_values=torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(GFLOPS[name, patch_size], rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_both_towers_end_in_one_space(name: str) -> None:
    model = model_of(name)
    side, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    with torch.no_grad():
        output = model(
            input_ids=torch.zeros(2, length, dtype=torch.long, device="meta"),
            pixel_values=torch.empty(2, 3, side, side, device="meta"),
        )
    assert output.image_embeds.shape == output.text_embeds.shape
