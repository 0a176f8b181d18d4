"""Export to open_clip: every tensor has a place, the way back gives the same ones, the config says what was trained.

The features of such folders were compared once with open_clip 3.3.0 and timm 1.0.31: within 1.2e-7 (CLIP, SigLIP).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, SiglipConfig

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import Preprocess, load_preprocess
from pairloom.schemas.recipes.train import ModelRecipe
from pairloom.trainers.export.open_clip import export
from pairloom.trainers.models.contrastive import load_model
from pairloom.trainers.open_clip.config import TimmTower, is_exact, open_clip_config
from pairloom.trainers.open_clip.load import convert_folder, is_open_clip
from pairloom.trainers.open_clip.state_dict_map import clip_moves, convert, convert_back, siglip_moves
from tests.support.tiny_models import write_clip, write_siglip, write_tokenizer
from tests.trainers.export.test_export import write_run


@pytest.mark.parametrize(("write", "moves"), [(write_siglip, siglip_moves(3, 2)), (write_clip, clip_moves(3, 2))])
def test_there_and_back(tmp_path: Path, write: Any, moves: Any) -> None:
    state = load_file(write(tmp_path) / "model.safetensors")
    state = {name: torch.randn_like(tensor) for name, tensor in state.items()}  # no two tensors equal
    converted = convert(state, moves)
    assert sum(tensor.numel() for tensor in converted.values()) == sum(tensor.numel() for tensor in state.values())
    restored = convert_back(converted, moves, {name: tensor.shape for name, tensor in state.items()})
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], tensor) for name, tensor in state.items())
    state.pop("logit_scale")
    with pytest.raises(InputError, match="logit_scale"):
        convert(state, moves)


def test_packed_weights_equal_a_worked_example(tmp_path: Path) -> None:
    state = load_file(write_clip(tmp_path) / "model.safetensors")
    converted = convert(state, clip_moves(3, 2))
    packed = converted["visual.transformer.resblocks.1.attn.in_proj_weight"]
    layer = "vision_model.encoder.layers.1.self_attn"
    assert torch.equal(packed[32:64], state[f"{layer}.k_proj.weight"])
    assert torch.equal(converted["visual.proj"], state["visual_projection.weight"].T)
    assert converted["logit_scale"].shape == ()


def test_clip_folder(tmp_path: Path) -> None:
    out = Path(export(write_run(tmp_path / "run", "clip"), str(tmp_path / "out")))
    described = json.loads((out / "open_clip_config.json").read_text())
    model = described["model_cfg"]
    assert (model["embed_dim"], model["quick_gelu"]) == (24, False)
    assert model["vision_cfg"] == {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, "mlp_ratio": 2.0,
    }  # fmt: skip
    assert (model["text_cfg"]["pool_type"], model["text_cfg"]["eos_id"]) == ("eos", 1)
    assert described["preprocess_cfg"]["resize_mode"] == "shortest"
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["largest_output_difference"] == 0
    assert "built from open_clip_config.json" in receipt["measured_with"] or "open_clip" in receipt["measured_with"]
    assert [receipt[name] for name in ("num_tensors", "num_restored_equal", "same_activation")] == [74, 94, True]
    assert (out / "tokenizer.json").exists()


def test_activations(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write_clip(tmp_path))
    config.vision_config.hidden_act = config.text_config.hidden_act = "quick_gelu"
    assert open_clip_config(config, Preprocess(32))["model_cfg"]["quick_gelu"] is True
    config.vision_config.hidden_act = "gelu"
    with pytest.raises(InputError, match="mix"):
        open_clip_config(config, Preprocess(32))


def siglip_config(patch_size: int, image_size: int) -> Any:
    vision = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "image_size": image_size, "patch_size": patch_size,
    }  # fmt: skip
    return SiglipConfig(vision_config=vision, text_config={"vocab_size": 100})


def test_siglip_towers() -> None:
    """open_clip knows SigLIP by timm's names, which fix the size and the form of GELU."""
    described = open_clip_config(siglip_config(16, 224), Preprocess(224))
    assert described["model_cfg"]["vision_cfg"]["timm_model_name"] == "vit_base_patch16_siglip_224"
    assert described["model_cfg"]["text_cfg"]["act_kwargs"] == {"approximate": "tanh"}
    assert described["preprocess_cfg"]["resize_mode"] == "squash"
    assert not is_exact(siglip_config(16, 224))  # timm's has erf, transformers' default is tanh
    assert is_exact(siglip_config(32, 256))
    with pytest.raises(InputError, match="vit_base_patch16_siglip_224"):
        open_clip_config(siglip_config(16, 240), Preprocess(240))


def test_llava_has_no_open_clip_form(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format hf"):
        export(write_run(tmp_path / "run", "llava"), str(tmp_path / "out"))


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_run_starts_from_a_checkpoint_of_open_clip(tmp_path: Path, write: Any, form: str) -> None:
    towers = (TimmTower("tiny", 8, 32, 3, 32, is_tanh=True, num_heads=2, mlp_width=64),)
    original = write(tmp_path / "hf")
    config = AutoConfig.from_pretrained(original)
    folder, moves = tmp_path / "open_clip", siglip_moves if config.model_type == "siglip" else clip_moves
    folder.mkdir()
    described = open_clip_config(config, load_preprocess(str(original)), towers)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    state = convert(load_file(original / "model.safetensors"), moves(3, 2))
    if form == "pt":  # as a training run of several GPUs leaves it
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, folder / "e3.pt")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    write_tokenizer(folder)
    assert is_open_clip(str(folder))
    assert not is_open_clip(str(original))
    convert_folder(str(folder / "e3.pt" if form == "pt" else folder), tmp_path / "back", towers)
    models = [load_model(str(path), ModelRecipe(path=str(path))) for path in (original, tmp_path / "back")]
    assert models[0][1] == models[1][1]
    ids = torch.tensor([[5, 9, 40, 1] + [0] * 12])
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": ids}
    with torch.no_grad():
        logits = [model.eval()(**inputs).logits_per_image for model, _ in models]
    assert torch.equal(*logits)
    assert (tmp_path / "back" / "tokenizer_config.json").exists()


def test_models_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    model = {"embed_dim": 512, "vision_cfg": {"layers": [3, 4, 6, 3], "width": 64, "image_size": 224}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(InputError, match="no plain vision transformer"):
        convert_folder(str(tmp_path), tmp_path / "out")
    model["vision_cfg"] = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    model["text_cfg"] = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 100}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(InputError, match="no file of weights"):
        convert_folder(str(tmp_path), tmp_path / "out")
    torch.save({"state_dict": {"visual.proj": torch.zeros(3)}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="without a counterpart"):
        convert_folder(str(tmp_path), tmp_path / "out")
