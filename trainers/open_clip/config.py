"""Make open_clip_config.json from the config of a transformers CLIP or SigLIP."""

from __future__ import annotations

from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import RESAMPLE_BICUBIC, Preprocess

# (patch_size, hidden_size, layers, image_size) -> (timm model name, whether its GELU is the tanh approximation).
# open_clip selects a timm tower by name only, so it cannot represent SigLIP models of other sizes.
TIMM_TOWERS = {
    (32, 768, 12, 256): ("vit_base_patch32_siglip_256", True),
    **{(16, 768, 12, size): (f"vit_base_patch16_siglip_{size}", False) for size in (224, 256, 384, 512)},
    **{(16, 1024, 24, size): (f"vit_large_patch16_siglip_{size}", size == 512) for size in (256, 384, 512)},
    **{(14, 1152, 27, size): (f"vit_so400m_patch14_siglip_{size}", False) for size in (224, 378, 384)},
    **{(16, 1152, 27, size): (f"vit_so400m_patch16_siglip_{size}", True) for size in (256, 384, 512)},
    **{(16, 1536, 40, size): (f"vit_giantopt_patch16_siglip_{size}", True) for size in (256, 384)},
}
_TANH = "gelu_pytorch_tanh"
INTERPOLATIONS = {RESAMPLE_BICUBIC: "bicubic", 2: "bilinear"}
_FIRST_EOS_ID = 2  # with this legacy default of eos_token_id, CLIPTextModel pools at the largest id


def open_clip_config(config: Any, preprocess: Preprocess) -> dict[str, Any]:
    """The content of open_clip_config.json: `model_cfg` and `preprocess_cfg`.

    Raises InputError for sizes or activations that open_clip does not have.
    """
    model = _siglip(config) if config.model_type == "siglip" else _clip(config)
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
    return config.model_type != "siglip" or _timm_tower(vision)[1] is bool(vision.hidden_act == _TANH)


def _timm_tower(vision: Any) -> tuple[str, bool]:
    size = (vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.image_size)
    if size not in TIMM_TOWERS:
        known = ", ".join(name for name, _ in TIMM_TOWERS.values())
        raise InputError(f"open_clip has no SigLIP tower of patch, width, layers, image = {size}; it has {known}")
    return TIMM_TOWERS[size]


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


def _siglip(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    if text.hidden_act not in ("gelu", _TANH):
        raise InputError(f"open_clip cannot hold a SigLIP with the activation {text.hidden_act}")
    return {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": _timm_tower(vision)[0],
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**_text(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }
