"""Sizes of the contrastive models by name (ALGORITHMS: vision transformers), as transformers' configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CLIPConfig, PretrainedConfig, SiglipConfig

from schemas.errors import RecipeError


@dataclass(frozen=True)
class Tower:
    """A transformer: layers, width, heads, and the width of its MLP."""

    layers: int
    width: int
    heads: int
    mlp: int

    def settings(self) -> dict[str, int]:
        """In transformers' words."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
        }


@dataclass(frozen=True)
class Preset:
    """Both towers, the picture's side and patch in px, and the text's length in tokens."""

    family: str  # clip | siglip
    vision: Tower
    text: Tower
    image_size: int
    patch_size: int
    text_length: int
    projection: int = 512  # clip only; siglip's towers have one width


B_TEXT = Tower(12, 768, 12, 3072)
PRESETS: Mapping[str, Preset] = {
    "siglip-test-tiny": Preset("siglip", Tower(2, 64, 2, 128), Tower(2, 64, 2, 128), 64, 16, 16),
    "clip-test-tiny": Preset("clip", Tower(2, 64, 2, 128), Tower(2, 64, 2, 128), 64, 16, 16, 64),
    "siglip-demo": Preset("siglip", Tower(4, 128, 4, 512), Tower(1, 128, 4, 512), 64, 32, 40),
    "siglip-vit-b-16": Preset("siglip", Tower(12, 768, 12, 3072), B_TEXT, 224, 16, 64),
    "siglip-vit-l-16": Preset("siglip", Tower(24, 1024, 16, 4096), Tower(24, 1024, 16, 4096), 256, 16, 64),
    "siglip-so400m-14": Preset("siglip", Tower(27, 1152, 16, 4304), Tower(27, 1152, 16, 4304), 224, 14, 64),
    "clip-vit-b-32": Preset("clip", Tower(12, 768, 12, 3072), Tower(12, 512, 8, 2048), 224, 32, 77),
    "clip-vit-b-16": Preset("clip", Tower(12, 768, 12, 3072), Tower(12, 512, 8, 2048), 224, 16, 77),
    "clip-vit-l-14": Preset("clip", Tower(24, 1024, 16, 4096), Tower(12, 768, 12, 3072), 224, 14, 77, 768),
}


def preset_config(
    name: str, overrides: Mapping[str, Any], vocab_size: int, tokens: Mapping[str, int]
) -> PretrainedConfig:
    """Configuration of a preset for one tokenizer; `tokens` are its bos, eos and pad ids.

    `overrides` set fields by the names of `Preset`, or below `vision` and `text` by transformers' names. Raises
    RecipeError.
    """
    if name not in PRESETS:
        raise RecipeError(f"model.preset: no preset {name}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    own = dict(overrides)
    vision_extra, text_extra = own.pop("vision", {}), own.pop("text", {})
    unknown = set(own) - {"image_size", "patch_size", "text_length", "projection"}
    if unknown:
        raise RecipeError(
            f"model.overrides: unknown {sorted(unknown)[0]}; there are image_size, patch_size, text_length, "
            "projection, vision, text"
        )
    size = {
        key: int(own.get(key, getattr(preset, key)))
        for key in ("image_size", "patch_size", "text_length", "projection")
    }
    vision = {
        **preset.vision.settings(),
        "image_size": size["image_size"],
        "patch_size": size["patch_size"],
        **vision_extra,
    }
    text = {
        **preset.text.settings(),
        "max_position_embeddings": size["text_length"],
        "vocab_size": vocab_size,
        **{f"{kind}_token_id": token for kind, token in tokens.items()},
        **text_extra,
    }
    if preset.family == "siglip":
        return SiglipConfig(text_config={**text, "projection_size": text["hidden_size"]}, vision_config=vision)
    for part in (vision, text):
        part["projection_dim"] = size["projection"]
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=size["projection"])
