"""A loaded model takes pictures of another size: its table of positions is resized, and the export says so."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, SiglipModel

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.trainers.models.positions import resize_images, resize_table
from pairloom.trainers.models.presets import preset_config


def test_position_table_is_resized_like_an_image() -> None:
    ramp = torch.arange(4.0).repeat(4, 1).reshape(16, 1)  # positions of a column
    first = torch.tensor([[-7.0]])  # the class token's
    larger = resize_table(torch.cat([first, ramp]), 4, 8)
    assert larger[0].item() == -7.0
    rows = larger[1:].reshape(8, 8)
    assert torch.equal(rows, rows[:1].expand(8, -1))
    assert torch.allclose(rows[0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert torch.equal(resize_table(ramp, 4, 4), ramp)
    assert torch.allclose(resize_table(ramp, 4, 2).mean(), ramp.mean())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_resized_model_is_loaded_again(kind: str, tmp_path: Path) -> None:
    config = preset_config(f"{kind}-test-tiny", {}, 30, {"bos": 0, "eos": 2, "pad": 1})
    model = CLIPModel(config) if kind == "clip" else SiglipModel(config)
    assert resize_images(model, Preprocess(64), 96).size == 96
    pixels = torch.randn(2, 3, 96, 96)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["image_size"] == 96
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = loaded.vision_model(pixel_values=pixels).pooler_output
        assert torch.equal(found, model.eval().vision_model(pixel_values=pixels).pooler_output)


def test_a_size_that_is_no_number_of_patches_is_refused() -> None:
    model = SiglipModel(preset_config("siglip-test-tiny", {}, 30, {"bos": 0, "eos": 2, "pad": 1}))
    with pytest.raises(RecipeError, match="no whole number of patches of 16 px"):
        resize_images(model, Preprocess(64), 70)
