"""Convert open_clip checkpoints (`open_clip_config.json` and a weights file) to Hugging Face folders, to start a run.

Weights are safetensors or torch files (`.pt` of a training run, `.bin` of a hub), loaded with `weights_only=True`. The
conversion uses the table of the export in the other direction and never imports open_clip.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.storage import storage
from pairloom.trainers.models.contrastive import CLIP_MEAN, CLIP_STD
from pairloom.trainers.models.hf_folder import local_folder
from pairloom.trainers.open_clip.config import INTERPOLATIONS, TIMM_TOWERS, TimmTower
from pairloom.trainers.open_clip.state_dict_map import State, clip_moves, convert_back, siglip_moves

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
TANH = "gelu_pytorch_tanh"
NOT_WEIGHTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # in files of OpenAI and old versions
FIRST_EOS_ID = 2  # makes transformers' CLIP pool at the largest id, like open_clip's `argmax`
TEXT_DEFAULTS = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}


def is_open_clip(path: str) -> bool:
    """True for a folder with open_clip_config.json, or a weights file in such a folder."""
    return storage.exists(storage.join(_folder_of(path), CONFIG))


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0] or "." if path.endswith(SUFFIXES) else path


def convert_folder(path: str, out: Path, towers: Sequence[TimmTower] = TIMM_TOWERS) -> None:
    """Convert an open_clip folder or weights file to a Hugging Face folder `out`; config.json is written last.

    Raises InputError for models that transformers cannot represent and for weights that are unreadable or do not fit.
    """
    local = Path(local_folder(_folder_of(path)))
    described = json.loads((local / CONFIG).read_text())
    config = network_config(described["model_cfg"], towers)
    weights = read_weights(local / storage.name_of(path) if path.endswith(SUFFIXES) else _find_weights(local))
    network = build_network(config, weights, path)
    network.save_pretrained(out)
    config_text = (out / "config.json").read_text()
    (out / "config.json").unlink()
    preprocess = _preprocess(described, int(config.vision_config.image_size))
    processor = preprocess.processor_config(
        "SiglipImageProcessor" if config.model_type == "siglip" else "CLIPImageProcessor"
    )
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1, sort_keys=True))
    for file in local.iterdir():
        if "token" in file.name or file.name in ("vocab.json", "vocab.txt", "merges.txt"):
            (out / file.name).write_bytes(file.read_bytes())
    (out / "config.json").write_text(config_text)


def network_config(model: Mapping[str, Any], towers: Sequence[TimmTower] = TIMM_TOWERS) -> CLIPConfig | SiglipConfig:
    """Config of the transformers model equivalent to open_clip's `model_cfg`. Raises InputError for other towers."""
    return siglip_config(model, towers) if "timm_model_name" in model["vision_cfg"] else clip_config(model)


def build_network(config: CLIPConfig | SiglipConfig, weights: State, path: str) -> Any:
    """Build the model and load weights that have open_clip's names; `path` is for errors.

    Raises InputError when the weights do not fit the config.
    """
    is_siglip = config.model_type == "siglip"
    network = (SiglipModel if is_siglip else CLIPModel)(config)
    moves = (siglip_moves if is_siglip else clip_moves)(
        config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    )
    if not is_siglip and "text.token_embedding.weight" in weights:  # a CLIP with a separate text module
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    try:
        network.load_state_dict(convert_back(weights, moves, shapes))
    except RuntimeError as error:
        raise InputError(f"{path}: weights do not fit {CONFIG}: {' '.join(str(error).split())[:200]}") from error
    return network


def _find_weights(folder: Path) -> Path:
    named = [folder / name for name in WEIGHTS if (folder / name).exists()]
    found = named[:1] or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no file of weights"
        raise InputError(f"{folder}: {names} beside {CONFIG}; name the file of weights itself")
    return found[0]


def read_weights(path: Path) -> State:
    """Load fp32 tensors by open_clip's names. Raises InputError when the file is unreadable."""
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not readable as weights: {' '.join(str(error).split())[:200]}") from error
    state = loaded.get("state_dict", loaded)
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor.float() for name, tensor in plain.items() if name not in NOT_WEIGHTS}


def _part(described: Mapping[str, Any], width: int, heads: int, activation: str) -> dict[str, Any]:
    """Config fields common to the vision and text towers of transformers."""
    if described.get("act_kwargs", {}).get("approximate") == "tanh":
        activation = TANH
    return {
        "hidden_size": width,
        "num_hidden_layers": described["layers"],
        "num_attention_heads": heads,
        "intermediate_size": int(width * described.get("mlp_ratio", 4.0)),
        "hidden_act": activation,
        "layer_norm_eps": described.get("norm_kwargs", {}).get("eps", 1e-5),
    }


def _text(model: Mapping[str, Any], activation: str) -> dict[str, Any]:
    text = {**TEXT_DEFAULTS, **model["text_cfg"]}
    if "hf_model_name" in text:
        raise InputError(f"{CONFIG}: a text tower of another library ({text['hf_model_name']}) cannot be taken over")
    return {
        **_part(text, text["width"], text["heads"], activation),
        "max_position_embeddings": text["context_length"],
        "vocab_size": text["vocab_size"],
    }


def clip_config(model: Mapping[str, Any]) -> CLIPConfig:
    """Convert `model_cfg` of an open_clip CLIP. Raises InputError unless it has open_clip's own vision transformer."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "patch_size" not in vision:
        raise InputError(
            f"{CONFIG}: its vision tower is no plain vision transformer; transformers' CLIP has only those"
        )
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    pools_at_eos = text.get("pool_type") == "eos"
    return CLIPConfig(
        vision_config={
            **_part(vision, vision["width"], vision["width"] // vision.get("head_width", 64), activation),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "projection_dim": model["embed_dim"],
        },
        text_config={
            **_text(model, activation),
            "projection_dim": model["embed_dim"],
            "eos_token_id": text["eos_id"] if pools_at_eos else FIRST_EOS_ID,
        },
        projection_dim=model["embed_dim"],
    )


def siglip_config(model: Mapping[str, Any], towers: Sequence[TimmTower]) -> SiglipConfig:
    """Convert `model_cfg` of an open_clip SigLIP. Raises InputError for other towers."""
    name = model["vision_cfg"]["timm_model_name"]
    by_name = {tower.name: tower for tower in towers}
    if name not in by_name or model["text_cfg"].get("pool_type") != "last":
        raise InputError(
            f"{CONFIG}: {name} with this text tower is no SigLIP of transformers; it has {', '.join(by_name)}"
        )
    tower = by_name[name]
    return SiglipConfig(
        vision_config={
            "hidden_size": tower.width,
            "num_hidden_layers": tower.num_layers,
            "num_attention_heads": tower.num_heads,
            "intermediate_size": tower.mlp_width,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "hidden_act": TANH if tower.is_tanh else "gelu",
        },
        text_config={**_text(model, "gelu"), "projection_size": model["embed_dim"]},
    )


def _preprocess(described: Mapping[str, Any], size: int) -> Preprocess:
    given = described.get("preprocess_cfg", {})
    mean, std = given.get("mean", CLIP_MEAN), given.get("std", CLIP_STD)
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    return Preprocess(
        size=size,
        mode="squash" if given.get("resize_mode") == "squash" else "center_crop",
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=numbers.get(given.get("interpolation", "bicubic"), 3),
    )
