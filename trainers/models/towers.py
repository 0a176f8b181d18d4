"""Two pretrained towers joined: any vision and text model of transformers, as VisionTextDualEncoderModel."""

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
# Families whose table of positions begins behind that of the padding.
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
    """The towers of two folders with new projection heads, in fp32, for images of another size where one is given.

    Raises InputError, RecipeError.
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
    """The model of a folder; of a model that has two towers, the one on that side."""
    try:
        model = AutoModel.from_pretrained(local_folder(folder), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"model.dual.{side}: {' '.join(str(error).split())[:300]}") from error
    tower = getattr(model, f"{side}_model", model)
    if type(tower.config) not in AutoModel._model_mapping:  # SigLIP's text tower: no folder could be loaded again
        raise RecipeError(f"model.dual.{side}: {folder} is a {tower.config.model_type}, which AutoModel does not build")
    if tower.main_input_name != ("pixel_values" if side == "vision" else "input_ids"):
        raise RecipeError(f"model.dual.{side}: {folder} is a {tower.config.model_type}, which is no {side} tower")
    return tower


@torch.no_grad()
def _missing_pooling(tower: Any) -> str | None:
    """Which token stands for a text where the tower has no pooler: the last of a GPT-like one, the first of others."""
    output = tower(input_ids=torch.zeros(1, 2, dtype=torch.long))
    if getattr(output, "pooler_output", None) is not None:
        return None
    return LAST if type(tower.config) in AutoModelForCausalLM._model_mapping else FIRST


def pool_texts(model: Any) -> None:
    """Give a dual encoder's text tower the pooled state that config.json's `text_pooling` says, where it says one.

    The class itself knows only towers with a pooler. Weights and their names stay the same.
    """
    pooling = getattr(model.config, "text_pooling", None)
    if pooling is None:
        return

    def pool(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> Any:
        states_BLD = output.last_hidden_state
        place = _last_places(states_BLD, inputs.get("attention_mask")) if pooling == LAST else 0
        pooled = states_BLD[torch.arange(len(states_BLD), device=states_BLD.device), place]
        return BaseModelOutputWithPooling(last_hidden_state=states_BLD, pooler_output=pooled)

    model.text_model.register_forward_hook(pool, with_kwargs=True)


def _last_places(states_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor | int:
    """Of each text the last token that is no padding, on whichever side that lies."""
    if mask_BL is None:
        return -1
    return (mask_BL * torch.arange(states_BLD.shape[1], device=mask_BL.device)).argmax(dim=1)


def pads_to_end(config: Any) -> bool:
    """True for SigLIP's text towers: they pool the last position, so that all of their texts have one length."""
    return config.text_config.model_type in ("siglip_text_model", "siglip2_text_model")


def num_places(config: Any) -> int:
    """Tokens that the text tower has positions for."""
    text = config.text_config
    num_reserved = text.pad_token_id + 1 if text.model_type in _PADDING_FIRST else 0
    return int(text.max_position_embeddings) - num_reserved


def load_dual_encoder(folder: str) -> Any:
    """A dual encoder from a folder, in fp32, that pools its texts as in training."""
    model = VisionTextDualEncoderModel.from_pretrained(local_folder(folder), dtype=torch.float32)
    pool_texts(model)
    return model
