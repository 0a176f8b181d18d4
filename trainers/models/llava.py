"""Build and load LLaVA (arXiv 2304.08485): vision tower, projector and language model.

The model class is transformers' LlavaForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModel,
    LlavaConfig,
    SiglipModel,
    SiglipVisionModel,
)
from transformers import LlavaForConditionalGeneration as Llava
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from pairloom.schemas.conversation import IMAGE_MARK
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.images.preprocess import Preprocess, load_preprocess
from pairloom.schemas.recipes.train import LlavaParts
from pairloom.trainers.models.hf_folder import local_folder, model_type_of
from pairloom.trainers.models.language import LANGUAGE_PRESETS, LanguageParts, load_language
from pairloom.trainers.text.chat import num_image_tokens

# model_type of a folder -> (class to load it with, whether the vision tower is only a part of that class)
_VISION_CLASSES = {
    "siglip": (SiglipModel, True),
    "clip": (CLIPModel, True),
    "siglip_vision_model": (SiglipVisionModel, False),
    "clip_vision_model": (CLIPVisionModel, False),
}
# CLIP's features start with [CLS], which `default` removes; SigLIP's features are patches only.
_SELECT_STRATEGY = {"siglip_vision_model": "full", "clip_vision_model": "default"}


@dataclass(frozen=True)
class LlavaFolder:
    """A LLaVA model with its tokenizer and image preprocessing."""

    model: Any  # LlavaForConditionalGeneration, fp32
    tokenizer: Any
    preprocess: Preprocess
    has_linear_projector: bool


def load_llava(folder: str) -> LlavaFolder:
    """Load a LLaVA export or any other folder of LlavaForConditionalGeneration.

    Raises InputError when the folder holds another kind of model.
    """
    if model_type_of(folder) != "llava":
        raise InputError(f"{folder}: holds no LLaVA model; give one under model.llava or another folder")
    local = local_folder(folder)
    model = Llava.from_pretrained(local, dtype=torch.float32)
    is_linear = model.config.projector_hidden_act == "linear"
    return LlavaFolder(model, AutoTokenizer.from_pretrained(local), load_preprocess(local), is_linear)


def build_llava(parts: LlavaParts, tokenizer_folder: str | None, seed: int) -> LlavaFolder:
    """Build a LLaVA from its parts; `seed` determines the random weights of the projector and of a language preset.

    Adds an `<image>` token to the tokenizer. Image features replace its input embedding, which is never read; its
    output row is trained like that of any token that never occurs. Raises InputError for folders without a fitting
    model, RecipeError for a tokenizer, language model or feature layer that does not fit.
    """
    vision = _load_vision(parts.vision)
    tokenizer = load_tokenizer(parts.language, tokenizer_folder)
    language = load_language(parts.language, len(tokenizer), seed)
    config = _make_config(parts, vision.config, language.config, tokenizer)
    with torch.device("meta"):
        model = Llava(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        projector = type(model.model.multi_modal_projector)(config)
        _init_projector(projector, parts.projector == "linear")
    model.model.vision_tower, model.model.multi_modal_projector = vision, projector
    model.model.language_model, model.lm_head = language.body, language.head
    _fit_vocabulary(model, language, len(tokenizer))
    return LlavaFolder(model, tokenizer, load_preprocess(parts.vision), parts.projector == "linear")


def _load_vision(folder: str) -> Any:
    model_type = model_type_of(folder)
    if model_type not in _VISION_CLASSES:
        raise InputError(f"{folder}: model.llava.vision takes {', '.join(_VISION_CLASSES)}; this is {model_type}")
    vision_class, is_part = _VISION_CLASSES[model_type]
    model = vision_class.from_pretrained(local_folder(folder), dtype=torch.float32)
    return model.vision_model if is_part else model


def load_tokenizer(language: str, tokenizer_folder: str | None) -> Any:
    """Load a tokenizer for LLaVA: without a suffix token, with a padding token and with `<image>`.

    A preset uses the tokenizer in `tokenizer_folder`, a language model folder its own. Raises RecipeError when a preset
    has no tokenizer.
    """
    is_preset = language in LANGUAGE_PRESETS
    if tokenizer_folder is None and is_preset:
        raise RecipeError(f"model.llava.language: preset {language} needs tokenizer.path or tokenizer.train")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder if is_preset else local_folder(language))
    if is_preset:
        tokenizer.model_max_length = VERY_LARGE_INTEGER  # a contrastive model's tokenizer truncates
    _remove_suffix(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(IMAGE_MARK, special=True, normalized=False)]},
        replace_extra_special_tokens=False,
    )
    return tokenizer


def _remove_suffix(tokenizer: Any) -> None:
    """Remove the end token that contrastive tokenizers append: a model would generate nothing after it."""
    whole = tokenizer.encode("a", add_special_tokens=True)
    if tokenizer.eos_token_id is not None and whole[-1] == tokenizer.eos_token_id:
        begins = [tokenizer.bos_token, tokenizer.bos_token_id] if whole[0] == tokenizer.bos_token_id else []
        tokenizer.backend_tokenizer.post_processor = _begin_processor(*begins)


def _begin_processor(token: str | None = None, token_id: int | None = None) -> Any:
    from tokenizers.processors import TemplateProcessing

    if token is None:
        return TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return TemplateProcessing(single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)])


def _make_config(parts: LlavaParts, vision_config: Any, text_config: Any, tokenizer: Any) -> Any:
    strategy = _SELECT_STRATEGY[vision_config.model_type]
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
        image_seq_length=num_image_tokens(vision_config, strategy),
        projector_hidden_act="linear" if parts.projector == "linear" else "gelu",
        vision_feature_select_strategy=strategy,
        vision_feature_layer=parts.feature_layer,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    num_layers = vision_config.num_hidden_layers
    if not -num_layers - 1 <= parts.feature_layer <= num_layers:
        raise RecipeError(f"model.llava.feature_layer: {parts.feature_layer} with {num_layers} layers of vision tower")
    return config


def _init_projector(projector: Any, is_linear: bool) -> None:
    """Xavier weights and zero biases; a linear projector trains `linear_1` and keeps `linear_2` as frozen identity."""
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    if is_linear:
        nn.init.eye_(projector.linear_2.weight)


def _fit_vocabulary(model: Any, language: LanguageParts, num_tokens: int) -> None:
    """Add embedding rows if the folder has no spare ones; each new row is the mean of the old rows."""
    old_size = language.body.get_input_embeddings().weight.shape[0]
    if num_tokens > old_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        for weight in {model.get_input_embeddings().weight, model.lm_head.weight}:
            with torch.no_grad():
                weight[old_size:] = weight[:old_size].mean(dim=0)
    if model.config.tie_word_embeddings:
        model.tie_weights()


def trained_vision_names(model: Any) -> Iterable[str]:
    """Names of the vision tower's parameters that affect the projector's input: no layers after the feature layer, no
    head.
    """
    layer = model.config.vision_feature_layer
    num_layers = model.config.vision_config.num_hidden_layers
    num_used = layer if layer >= 0 else num_layers + 1 + layer
    unused = tuple(f"encoder.layers.{index}." for index in range(num_used, num_layers))
    unused += ("post_layernorm.", "head.")
    for name, _ in model.model.vision_tower.named_parameters():
        if not name.startswith(unused):
            yield f"model.vision_tower.{name}"
