"""Join pretrained vision and text models of transformers to a VisionTextDualEncoderModel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, VisionTextDualEncoderModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.images.preprocess import Preprocess, load_preprocess
from pairloom.schemas.recipes.train import DualParts
from pairloom.trainers.models.hf_folder import local_folder
from pairloom.trainers.models.positions import resize_images

LAST, FIRST = "last_token", "first_token"
# Families whose position ids start at pad_token_id + 1.
_PADDING_FIRST = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
    "mpnet",
    "longformer",
)


def join_towers(parts: DualParts, image_size: int | None = None) -> tuple[Any, Preprocess]:
    """Join the fp32 towers of two folders with new projection heads; returns the model and its image preprocessing.

    `image_size` in px; None keeps the vision tower's. Raises InputError when a folder cannot be loaded, RecipeError
    when a tower cannot be used on its side or does not support the image size.
    """
    vision, text = _load_tower(parts.vision, "vision"), _load_tower(parts.text, "text")
    if not hasattr(vision.config, "hidden_size"):  # ConvNeXt has a width for each stage
        vision.config.hidden_size = vision.config.hidden_sizes[-1]
    model = VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    for name, width in (("visual_projection", model.vision_embed_dim), ("text_projection", model.text_embed_dim)):
        setattr(model, name, nn.Linear(width, parts.projection_dim, bias=False))
    model.config.projection_dim = parts.projection_dim
    if (pooling := _missing_pooling(text)) is not None:
        model.config.text_pooling = pooling
    pool_texts(model)
    preprocess = load_preprocess(local_folder(parts.vision))
    return model, preprocess if image_size is None else resize_images(model, preprocess, image_size)


def _load_tower(folder: str, side: str) -> Any:
    """Load the model of a folder; of a model with two towers, the tower of `side` ("vision" or "text")."""
    try:
        model = AutoModel.from_pretrained(local_folder(folder), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"model.dual.{side}: {' '.join(str(error).split())[:300]}") from error
    tower = getattr(model, f"{side}_model", model)
    if type(tower.config) not in AutoModel._model_mapping:  # e.g. SigLIP's text tower: an export could not be loaded
        raise RecipeError(f"model.dual.{side}: {folder} is a {tower.config.model_type}, which AutoModel does not build")
    if tower.main_input_name != ("pixel_values" if side == "vision" else "input_ids"):
        raise RecipeError(f"model.dual.{side}: {folder} is a {tower.config.model_type}, which is no {side} tower")
    return tower


@torch.no_grad()
def _missing_pooling(tower: Any) -> str | None:
    """The pooling of a text tower without a pooler: last token for causal models, first token for others, else None."""
    output = tower(input_ids=torch.zeros(1, 2, dtype=torch.long))
    if getattr(output, "pooler_output", None) is not None:
        return None
    return LAST if type(tower.config) in AutoModelForCausalLM._model_mapping else FIRST


def pool_texts(model: Any) -> None:
    """Add pooling by config.json's `text_pooling`, if set, to a dual encoder's text tower.

    The class itself supports only towers with a pooler. Weights and their names do not change.
    """
    pooling = getattr(model.config, "text_pooling", None)
    if pooling is None:
        return

    def pool(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> Any:
        states_BLD = output.last_hidden_state
        position = _last_positions(states_BLD, inputs.get("attention_mask")) if pooling == LAST else 0
        pooled = states_BLD[torch.arange(len(states_BLD), device=states_BLD.device), position]
        return BaseModelOutputWithPooling(last_hidden_state=states_BLD, pooler_output=pooled)

    model.text_model.register_forward_hook(pool, with_kwargs=True)


def _last_positions(states_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor | int:
    """Positions [B] of the last token of each text that is not padding, for padding on either side."""
    if mask_BL is None:
        return -1
    return (mask_BL * torch.arange(states_BLD.shape[1], device=mask_BL.device)).argmax(dim=1)


def pads_to_end(config: Any) -> bool:
    """True for SigLIP's text towers, which pool the last position and therefore need texts of one length."""
    return config.text_config.model_type in ("siglip_text_model", "siglip2_text_model")


def max_text_tokens(config: Any) -> int:
    """Maximum number of tokens of the text tower."""
    text = config.text_config
    num_reserved = text.pad_token_id + 1 if text.model_type in _PADDING_FIRST else 0
    return int(text.max_position_embeddings) - num_reserved


def load_dual_encoder(folder: str) -> Any:
    """Load an fp32 dual encoder from a folder, with the text pooling of its training."""
    model = VisionTextDualEncoderModel.from_pretrained(local_folder(folder), dtype=torch.float32)
    pool_texts(model)
    return model
