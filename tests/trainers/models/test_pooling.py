"""CLS, mean and MAP pooling: mean pooling is a SigLIP whose head is fixed, for transformers and open_clip alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import SiglipModel

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.models.presets import preset_config
from tests.support.tiny_models import write_tokenizer
from tests.trainers.models.test_towers import make_task, train

TOKENS = {"bos": 0, "eos": 2, "pad": 1}
MEAN = {"preset": "siglip-test-tiny", "overrides": {"pooling": "mean", "image_size": 32, "patch_size": 8}}


@pytest.mark.parametrize("loss", ["siglip", "clip"])
def test_mean_pooling_is_the_mean(tmp_path: Path, loss: str) -> None:
    write_tokenizer(tmp_path)
    task = make_task(tmp_path, tmp_path, loss, **MEAN)
    losses = train(task, 6)
    assert losses[-1] < losses[0]
    task.save_model(str(tmp_path / "out"), task.model.state_dict())
    plain = SiglipModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        output = plain.vision_model(pixel_values=torch.randn(3, 3, 32, 32))
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert DualEncoder(str(tmp_path / "out")).text_features(["a dog"]).shape == (1, 64)
    again = make_task(tmp_path, tmp_path, loss, path=str(tmp_path / "out"))
    assert not any(parameter.requires_grad for parameter in again._model.hf.vision_model.head.parameters())


def test_poolings_of_presets() -> None:
    assert preset_config("siglip-vit-b-16", {"pooling": "mean"}, 100, TOKENS).vision_config.pooling == "mean"
    for name, pooling in (("clip-vit-b-16", "mean"), ("clip-vit-b-16", "map"), ("siglip-vit-b-16", "cls")):
        with pytest.raises(RecipeError, match="clip presets have cls, siglip presets map and mean"):
            preset_config(name, {"pooling": pooling}, 100, TOKENS)
