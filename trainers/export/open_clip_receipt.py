"""Compare the outputs of an open_clip folder with those of the trained model.

If open_clip and torchvision are installed, open_clip computes the outputs. Otherwise transformers does, with a model
built from open_clip_config.json (activation, pooling, sizes) and the weights of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pairloom.schemas.storage import storage
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.export.receipt import PROBE_TEXTS, load_strictly, probe_inputs
from pairloom.trainers.models.hf_folder import local_folder
from pairloom.trainers.open_clip.load import build_network, network_config, read_weights

WEIGHTS = "open_clip_model.safetensors"
Features = Callable[[torch.Tensor, dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def measure(folder: str, model_url: str) -> dict[str, Any]:
    """Largest absolute difference of L2-normalised features, overall and per tower, and the library that ran."""
    encoder = DualEncoder(model_url)
    pixels = probe_inputs(encoder.preprocess)["pixel_values"]
    tokens = {name: tensor.cpu() for name, tensor in encoder.tokenize(PROBE_TEXTS).items()}
    reference = _by_transformers(load_strictly(model_url)[0])(pixels, tokens)
    has_open_clip = all(find_spec(name) for name in ("open_clip", "torchvision"))
    found, by = _by_open_clip(folder) if has_open_clip else _by_config(folder)
    pairs = zip(("image_features", "text_features"), reference, found(pixels, tokens), strict=True)
    differences = {name: float((ours - theirs).abs().max()) for name, ours, theirs in pairs}
    return {
        "largest_output_difference": max(differences.values()),
        "output_differences": differences,
        "measured_with": by,
    }


def _by_config(folder: str) -> tuple[Features, str]:
    local = local_folder(folder)
    described = json.loads(storage.read_text(storage.join(folder, "open_clip_config.json")))
    config = network_config(described["model_cfg"])
    network = build_network(config, read_weights(Path(local, WEIGHTS)), folder).eval()
    return _by_transformers(network), f"transformers {version('transformers')} built from open_clip_config.json"


def _by_transformers(model: Any) -> Features:
    def features(pixels: torch.Tensor, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model.cpu()(pixel_values=pixels, **tokens)
        return output.image_embeds, output.text_embeds

    return features


def _by_open_clip(folder: str) -> tuple[Features, str]:
    import open_clip

    model = open_clip.create_model(f"local-dir:{local_folder(folder)}").eval()

    def features(pixels: torch.Tensor, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokens["input_ids"]
        ids = functional.pad(ids, (0, model.context_length - ids.shape[1]))  # as open_clip's tokenizer does
        return model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)

    return features, f"open_clip {version('open_clip_torch')}"
