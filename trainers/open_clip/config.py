"""Make open_clip_config.json from the config of a transformers CLIP or SigLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import RESAMPLE_BICUBIC, Preprocess


@dataclass(frozen=True)
class TimmTower:
    """A SigLIP vision tower of timm. open_clip selects it by name only, so it holds no SigLIP models of other sizes."""

    name: str
    patch_size: int
    width: int
    num_layers: int
    image_size: int
    is_tanh: bool  # whether its GELU is the tanh approximation
    num_heads: int
    mlp_width: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Patch size, width, layers and image size, which identify the tower."""
        return self.patch_size, self.width, self.num_layers, self.image_size


def _towers(
    kind: str, sizes: tuple[int, int, int], heads: int, mlp: int, images: Mapping[int, bool]
) -> list[TimmTower]:
    """Towers of one kind, by image size -> whether its GELU is tanh. `sizes`: patch size, width, layers."""
    return [
        TimmTower(f"vit_{kind}_siglip_{image}", *sizes, image, is_tanh, heads, mlp) for image, is_tanh in images.items()
    ]


TIMM_TOWERS = (
    *_towers("base_patch32", (32, 768, 12), 12, 3072, {256: True}),
    *_towers("base_patch16", (16, 768, 12), 12, 3072, dict.fromkeys((224, 256, 384, 512), False)),
    *_towers("large_patch16", (16, 1024, 24), 16, 4096, {256: False, 384: False, 512: True}),
    *_towers("so400m_patch14", (14, 1152, 27), 16, 4304, dict.fromkeys((224, 378, 384), False)),
    *_towers("so400m_patch16", (16, 1152, 27), 16, 4304, dict.fromkeys((256, 384, 512), True)),
    *_towers("giantopt_patch16", (16, 1536, 40), 16, 6144, dict.fromkeys((256, 384), True)),
)
_TANH = "gelu_pytorch_tanh"
INTERPOLATIONS = {RESAMPLE_BICUBIC: "bicubic", 2: "bilinear"}
_FIRST_EOS_ID = 2  # with this legacy default of eos_token_id, CLIPTextModel pools at the largest id


def open_clip_config(config: Any, preprocess: Preprocess, towers: Sequence[TimmTower] = TIMM_TOWERS) -> dict[str, Any]:
    """The content of open_clip_config.json: `model_cfg` and `preprocess_cfg`.

    Raises InputError for sizes or activations that open_clip does not have.
    """
    model = _siglip(config, towers) if config.model_type == "siglip" else _clip(config)
    pixels = {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": INTERPOLATIONS.get(preprocess.resample, "bicubic"),
        "resize_mode": "squash" if preprocess.mode == "squash" else "shortest",
    }
    return {"model_cfg": model, "preprocess_cfg": pixels}


def is_exact(config: Any) -> bool:
    """True if open_clip's tower has the same form of GELU; with the other form, features differ in the fifth digit."""
    vision = config.vision_config
    is_tanh = bool(vision.hidden_act == _TANH)
    return config.model_type != "siglip" or _timm_tower(vision, TIMM_TOWERS).is_tanh is is_tanh


def _timm_tower(vision: Any, towers: Sequence[TimmTower]) -> TimmTower:
    sizes = (vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.image_size)
    found = next((tower for tower in towers if tower.sizes == sizes), None)
    if found is None:
        known = ", ".join(tower.name for tower in towers)
        raise InputError(f"open_clip has no SigLIP tower of patch, width, layers, image = {sizes}; it has {known}")
    return found


def _transformer(part: Any) -> dict[str, Any]:
    """Settings common to open_clip's vision and text transformers."""
    sizes = {"width": part.hidden_size, "layers": part.num_hidden_layers}
    ratio = part.intermediate_size / part.hidden_size
    extra: dict[str, Any] = {} if ratio == 4 else {"mlp_ratio": ratio}
    if int(part.hidden_size * ratio) != part.intermediate_size:
        raise InputError(f"open_clip cannot hold an intermediate_size of {part.intermediate_size}")
    if part.layer_norm_eps != 1e-5:
        extra["norm_kwargs"] = {"eps": part.layer_norm_eps}
    if part.hidden_act == _TANH:
        extra["act_kwargs"] = {"approximate": "tanh"}
    return {**sizes, **extra}


def _text(part: Any) -> dict[str, Any]:
    return {
        **_transformer(part),
        "heads": part.num_attention_heads,
        "context_length": part.max_position_embeddings,
        "vocab_size": part.vocab_size,
        "hf_tokenizer_name": ".",  # the tokenizer next to the weights; on a hub, put the repository name here
        "tokenizer_kwargs": {"clean": "whitespace"},
    }


def _clip(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    acts = {vision.hidden_act, text.hidden_act}
    if not acts <= {"gelu", _TANH} and acts != {"quick_gelu"}:
        raise InputError(f"open_clip cannot mix these activations: {', '.join(sorted(acts))}")
    is_argmax = text.eos_token_id == _FIRST_EOS_ID
    pooling = {"pool_type": "argmax"} if is_argmax else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            **_transformer(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {**_text(text), **pooling},
    }


def _siglip(config: Any, towers: Sequence[TimmTower]) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    if text.hidden_act not in ("gelu", _TANH):
        raise InputError(f"open_clip cannot hold a SigLIP with the activation {text.hidden_act}")
    return {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": _timm_tower(vision, towers).name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**_text(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }
