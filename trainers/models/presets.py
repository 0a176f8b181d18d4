"""Named sizes of contrastive models, as transformers configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CLIPConfig, PretrainedConfig, SiglipConfig

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.train import ModelRecipe


@dataclass(frozen=True)
class Tower:
    """Sizes of a transformer: layers, width, attention heads, and MLP width."""

    layers: int
    width: int
    heads: int
    mlp: int

    def settings(self) -> dict[str, int]:
        """Fields of a transformers config."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
        }


@dataclass(frozen=True)
class Preset:
    """Sizes of both towers; image and patch sizes in px, text length in tokens."""

    family: str  # clip | siglip | siglip2 (SigLIP's architecture with a Siglip2Tokenizer)
    vision: Tower
    text: Tower
    image_size: int
    patch_size: int
    text_length: int
    projection: int = 512  # clip only; other families project texts to the width of the vision tower


# Vision transformers (Dosovitskiy et al., arXiv 2010.11929; Zhai et al., arXiv 2106.04560; So400m: arXiv 2305.13035).
TI = Tower(12, 192, 3, 768)
S = Tower(12, 384, 6, 1536)
B = Tower(12, 768, 12, 3072)
L = Tower(24, 1024, 16, 4096)
H = Tower(32, 1280, 16, 5120)
G = Tower(40, 1408, 16, 6144)  # "little g", 1.0e9 parameters
G_OPT = Tower(40, 1536, 16, 6144)  # SigLIP 2's g, 1.1e9
BIG_G = Tower(48, 1664, 16, 8192)  # "G", 1.8e9
SO400M = Tower(27, 1152, 16, 4304)
# CLIP's text transformers (Radford et al., arXiv 2103.00020; H and larger: open_clip).
B_TEXT = Tower(12, 512, 8, 2048)
L_TEXT = Tower(12, 768, 12, 3072)
H_TEXT = Tower(24, 1024, 16, 4096)
BIG_G_TEXT = Tower(32, 1280, 20, 5120)
TEST = Tower(2, 64, 2, 128)
MEAN_POOLING = "mean"  # mean over patches instead of SigLIP's attention pooling
PRESETS: Mapping[str, Preset] = {
    "siglip-test-tiny": Preset("siglip", TEST, TEST, 64, 16, 16),
    "clip-test-tiny": Preset("clip", TEST, TEST, 64, 16, 16, 64),
    "siglip-demo": Preset("siglip", Tower(4, 128, 4, 512), Tower(1, 128, 4, 512), 64, 32, 40),
    "siglip-vit-ti-16": Preset("siglip", TI, TI, 224, 16, 64),
    "siglip-vit-s-16": Preset("siglip", S, S, 224, 16, 64),
    "siglip-vit-b-32": Preset("siglip", B, B, 256, 32, 64),
    "siglip-vit-b-16": Preset("siglip", B, B, 224, 16, 64),
    "siglip-vit-l-16": Preset("siglip", L, L, 256, 16, 64),
    "siglip-so400m-14": Preset("siglip", SO400M, SO400M, 224, 14, 64),
    "siglip-vit-h-14": Preset("siglip", H, SO400M, 224, 14, 64),
    "siglip-vit-g-14": Preset("siglip", G, SO400M, 224, 14, 64),
    # SigLIP 2 (Tschannen et al., arXiv 2502.14786); with model.num_patches as NaFlex.
    "siglip2-test-tiny": Preset("siglip2", TEST, TEST, 64, 16, 64),
    "siglip2-vit-b-16": Preset("siglip2", B, B, 256, 16, 64),
    "siglip2-vit-l-16": Preset("siglip2", L, L, 256, 16, 64),
    "siglip2-so400m-16": Preset("siglip2", SO400M, SO400M, 256, 16, 64),
    "siglip2-vit-g-16": Preset("siglip2", G_OPT, SO400M, 256, 16, 64),
    "clip-vit-ti-16": Preset("clip", TI, TI, 224, 16, 77, 192),
    "clip-vit-s-16": Preset("clip", S, S, 224, 16, 77, 384),
    "clip-vit-b-32": Preset("clip", B, B_TEXT, 224, 32, 77),
    "clip-vit-b-16": Preset("clip", B, B_TEXT, 224, 16, 77),
    "clip-vit-l-14": Preset("clip", L, L_TEXT, 224, 14, 77, 768),
    "clip-so400m-14": Preset("clip", SO400M, SO400M, 224, 14, 77, 1152),
    "clip-vit-h-14": Preset("clip", H, H_TEXT, 224, 14, 77, 1024),
    "clip-vit-g-14": Preset("clip", G, H_TEXT, 224, 14, 77, 1024),
    "clip-vit-bigg-14": Preset("clip", BIG_G, BIG_G_TEXT, 224, 14, 77, 1280),
}


def is_siglip2(recipe: ModelRecipe) -> bool:
    """True for SigLIP 2 presets and for NaFlex, which use a Siglip2Tokenizer."""
    preset = PRESETS.get(recipe.preset or "")
    return (preset is not None and preset.family == "siglip2") or bool(recipe.num_patches)


def preset_config(
    name: str, overrides: Mapping[str, Any], vocab_size: int, tokens: Mapping[str, int]
) -> PretrainedConfig:
    """Config of a preset for one tokenizer; `tokens` are its bos, eos and pad ids.

    `overrides` set fields of `Preset` and `pooling`; below `vision` and `text` they set fields of the transformers
    configs. Raises RecipeError for an unknown preset, field or pooling.
    """
    if name not in PRESETS:
        raise RecipeError(f"model.preset: no preset {name}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    own = dict(overrides)
    vision_extra, text_extra = own.pop("vision", {}), own.pop("text", {})
    pooling = own.pop("pooling", None)
    unknown = set(own) - {"image_size", "patch_size", "text_length", "projection"}
    if unknown:
        raise RecipeError(
            f"model.overrides: unknown {sorted(unknown)[0]}; there are image_size, patch_size, text_length, "
            "projection, pooling, vision, text"
        )
    if pooling is not None:
        vision_extra = {**vision_extra, "pooling": _checked_pooling(pooling, preset.family)}
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
    if preset.family != "clip":
        return SiglipConfig(text_config={**text, "projection_size": vision["hidden_size"]}, vision_config=vision)
    for part in (vision, text):
        part["projection_dim"] = size["projection"]
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=size["projection"])


def _checked_pooling(pooling: Any, family: str) -> str:
    """Check that the class supports a pooling: CLIP only cls (class token), SigLIP map (attention pooling) and mean."""
    own = "cls" if family == "clip" else "map"
    if pooling not in (own, MEAN_POOLING) or (pooling == MEAN_POOLING and family == "clip"):
        raise RecipeError(
            f"model.overrides.pooling {pooling}: clip presets have cls, siglip presets map and mean; either takes "
            "either task.loss"
        )
    return str(pooling)
