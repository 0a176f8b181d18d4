"""Contrastive models: a wrapper around a Hugging Face class that computes the features of both towers.

DeepSpeed fails on 0-D parameters on a CPU, so `logit_scale` and `logit_bias` are trained with shape [1] and saved in
the shape of the exported class. The dual encoder class has no bias parameter: its bias is saved in config.json.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, Siglip2Model, SiglipModel, VisionTextDualEncoderModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.images.naflex import AnyPreprocess, NaflexPreprocess, load_any_preprocess
from pairloom.schemas.images.preprocess import RESAMPLE_BICUBIC, RESAMPLE_BILINEAR, Preprocess
from pairloom.schemas.recipes.train import ModelRecipe
from pairloom.trainers.models.fast_towers import prune_unused_compute
from pairloom.trainers.models.hf_folder import model_type_of
from pairloom.trainers.models.naflex import IMAGE_INPUTS, naflex_config, naflex_preprocess, share_positions, to_naflex
from pairloom.trainers.models.positions import resize_images
from pairloom.trainers.models.presets import MEAN_POOLING, is_siglip2, preset_config
from pairloom.trainers.models.towers import load_dual_encoder
from pairloom.trainers.task import Batch

MAX_LOG_SCALE = math.log(100)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FAMILIES = {
    "clip": CLIPModel,
    "siglip": SiglipModel,
    "siglip2": Siglip2Model,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}


class Features(NamedTuple):
    """L2-normalised fp32 features [B, D], the clamped and exponentiated logit scale [1], and the logit bias [1].

    A tuple, because ZeRO-3 finds tensors in a module's output only in tuples, lists and dicts.
    """

    image: torch.Tensor
    text: torch.Tensor
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor


class LossSettings(Protocol):
    """The fields of a contrastive task's recipe that the model needs."""

    @property
    def loss(self) -> Literal["clip", "siglip"]: ...
    @property
    def initial_logit_scale(self) -> float | None: ...
    @property
    def initial_logit_bias(self) -> float: ...
    @property
    def patch_dropout(self) -> float: ...


class ContrastiveModel(nn.Module):
    """Wraps the exported class `hf`; forward returns the features of both towers.

    Raises RecipeError for `patch_dropout` with towers that do not support it.
    """

    def __init__(self, hf: Any, task: LossSettings, is_new: bool) -> None:
        super().__init__()
        self.hf = hf
        self._locked: list[nn.Module] = []
        self._kept_patches: torch.Tensor | None = None
        prune_unused_compute(hf)
        if isinstance(hf, Siglip2Model):
            share_positions(hf)
        if task.patch_dropout:
            if hf.config.model_type not in ("clip", "siglip"):
                raise RecipeError(f"task.patch_dropout: not for the towers of a {hf.config.model_type}")
            hf.vision_model.embeddings.register_forward_hook(self._drop_patches)
        scale = hf.logit_scale.detach().float().reshape(1)
        bias = _bias_of(hf)
        if is_new or task.initial_logit_scale is not None:
            scale = torch.full((1,), _initial_scale(task))
        if is_new or bias is None:
            bias = torch.full((1,), task.initial_logit_bias)
        self._scale_shape, self._has_bias = tuple(hf.logit_scale.shape), hasattr(hf, "logit_bias")
        for name in ("logit_scale", "logit_bias"):
            if hasattr(hf, name):
                delattr(hf, name)
        self.logit_scale = nn.Parameter(scale)
        self.logit_bias = nn.Parameter(bias, requires_grad=task.loss == "siglip")
        if getattr(hf.config.vision_config, "pooling", None) == MEAN_POOLING:
            average_patches(hf.vision_model.head)

    def forward(self, batch: Batch) -> Features:
        """Features of a batch.

        The image input is `pixel_values` [B, 3, S, S], NaFlex's inputs, or the cached output of a locked vision tower,
        `pooled_image` [B, P]. The text input is `input_ids` [B, L], with `attention_mask` [B, L] if the class takes
        one, or `pooled_text` [B, P].
        """
        pooled_image = batch["pooled_image"] if "pooled_image" in batch else self.pool_images(batch)
        pooled_text = batch["pooled_text"] if "pooled_text" in batch else self.pool_texts(batch)
        image = self._project("visual_projection", pooled_image)
        text = self._project("text_projection", pooled_text)
        scale = self.logit_scale.float().clamp(0.0, MAX_LOG_SCALE).exp()
        return Features(
            F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), scale, self.logit_bias.float()
        )

    def pool_images(self, batch: Batch) -> torch.Tensor:
        """Pooled output [B, P] of the vision tower, computed from `kept_patches` [B, K] only if the batch has them."""
        self._kept_patches = batch.get("kept_patches")
        inputs = {name: batch[name] for name in IMAGE_INPUTS if name in batch}
        pooled: torch.Tensor = self.hf.vision_model(**inputs).pooler_output
        self._kept_patches = None
        return pooled.flatten(1)

    def pool_texts(self, batch: Batch) -> torch.Tensor:
        """Pooled output [B, P] of the text tower."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        pooled: torch.Tensor = self.hf.text_model(**inputs).pooler_output
        return pooled

    def _project(self, name: str, pooled: torch.Tensor) -> torch.Tensor:
        """Apply the projection if the class has one; SigLIP's pooled outputs are already in the shared space."""
        projected: torch.Tensor = getattr(self.hf, name)(pooled) if hasattr(self.hf, name) else pooled
        return projected

    @property
    def num_patches(self) -> int:
        """Number of patches per image."""
        config = self.hf.config.vision_config
        return int((config.image_size // config.patch_size) ** 2)

    def _drop_patches(self, _: nn.Module, __: Any, tokens_BLD: torch.Tensor) -> torch.Tensor:
        """Select the tokens of the kept patches and those before the patches (CLIP's class token)."""
        if self._kept_patches is None:
            return tokens_BLD
        num_before = tokens_BLD.shape[1] - self.num_patches
        before = torch.arange(num_before, device=tokens_BLD.device).expand(len(tokens_BLD), -1)
        kept_BK = torch.cat([before, self._kept_patches + num_before], dim=1)
        return tokens_BLD.gather(1, kept_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))

    def checkpoint_activations(self, zero_stage: int) -> None:
        """Activation checkpointing: store only each layer's input and recompute the layer in the backward pass.

        ZeRO-3 gathers a layer's weights when its module is called; only the reentrant form calls it in the backward.
        """
        self.hf.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": zero_stage == 3})

    def compile_layers(self) -> None:
        """Compile each layer of the towers with torch.compile at its first call.

        Text lengths are dynamic from the start, so that a resumed run compiles to the same code as an unbroken one.
        """
        os.environ.pop("TORCHDYNAMO_DISABLE", None)  # set by the launcher on machines without a GPU
        for tower, is_dynamic in ((self.hf.vision_model, None), (self.hf.text_model, True)):
            for layer in tower.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.compile(dynamic=is_dynamic)

    def lock(self, towers: Sequence[str]) -> None:
        """Freeze towers ("vision", "text") including their poolers, and keep them in eval mode."""
        self._locked = [getattr(self.hf, f"{tower}_model") for tower in towers]
        for tower in self._locked:
            tower.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ContrastiveModel:
        """Set train mode except for locked towers, which have no dropout and do not update batch statistics."""
        super().train(mode)
        for tower in self._locked:
            tower.eval()
        return self

    def exported_state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert a state dict of this module to one of the exported class.

        If the class has no bias parameter, a trained bias is stored in `hf.config`, from which the next run reads it.
        """
        exported = {name.removeprefix("hf."): value for name, value in state.items() if name.startswith("hf.")}
        exported["logit_scale"] = state["logit_scale"].reshape(self._scale_shape)
        if self._has_bias:
            exported["logit_bias"] = state["logit_bias"].reshape(1)
        elif self.logit_bias.requires_grad:
            self.hf.config.logit_bias = float(state["logit_bias"])
        return exported


def _bias_of(hf: Any) -> torch.Tensor | None:
    """The trained logit bias [1] of a model or its config, or None."""
    if hasattr(hf, "logit_bias"):
        return torch.as_tensor(hf.logit_bias.detach().float().reshape(1))
    kept = getattr(hf.config, "logit_bias", None)
    return None if kept is None else torch.tensor([float(kept)])


@torch.no_grad()
def average_patches(head: Any) -> None:
    """Fix the weights of SigLIP's attention pooling so that it computes the mean over patches, also in the export.

    With zero queries and keys all patches have equal weight; values pass through unchanged and the MLP adds zero.
    """
    width = head.layernorm.weight.numel()
    for parameter in head.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)
    head.layernorm.weight.fill_(1.0)
    head.attention.in_proj_weight[2 * width :].fill_diagonal_(1.0)
    head.attention.out_proj.weight.fill_diagonal_(1.0)


def _initial_scale(task: LossSettings) -> float:
    if task.initial_logit_scale is not None:
        return task.initial_logit_scale
    return math.log(1 / 0.07) if task.loss == "clip" else math.log(10)


def new_model(recipe: ModelRecipe, vocab_size: int, tokens: Mapping[str, int]) -> tuple[Any, AnyPreprocess]:
    """Make a preset's model with random weights and its image preprocessing.

    `tokens` are the tokenizer's bos, eos and pad ids. Raises RecipeError.
    """
    config = preset_config(str(recipe.preset), recipe.overrides, vocab_size, tokens)
    size = int(config.vision_config.image_size)
    if recipe.num_patches:
        _check_siglip(config.model_type)
        preprocess = naflex_preprocess(recipe.num_patches, int(config.vision_config.patch_size))
        return Siglip2Model(naflex_config(config)), preprocess
    if config.model_type == "clip":
        return CLIPModel(config), Preprocess(size, "center_crop", CLIP_MEAN, CLIP_STD)
    return SiglipModel(config), Preprocess(size, resample=RESAMPLE_BILINEAR if is_siglip2(recipe) else RESAMPLE_BICUBIC)


def load_model(folder: str, recipe: ModelRecipe) -> tuple[Any, AnyPreprocess]:
    """Load an fp32 contrastive model and its image preprocessing from a Hugging Face folder.

    The recipe's image size or numbers of patches are applied. Raises InputError for models of other families,
    RecipeError for image settings that the model does not support.
    """
    model_type = model_type_of(folder)
    if model_type not in FAMILIES:
        raise InputError(f"{folder}: holds a {model_type} model; contrastive tasks take {', '.join(FAMILIES)}")
    if model_type == "vision-text-dual-encoder":
        hf = load_dual_encoder(folder)
    else:
        hf = FAMILIES[model_type].from_pretrained(folder, dtype=torch.float32)
    preprocess = load_any_preprocess(folder)
    if recipe.image_size is not None:
        preprocess = resize_images(hf, preprocess, recipe.image_size)
    if not recipe.num_patches:
        return hf, preprocess
    _check_siglip(model_type)
    naflex = naflex_preprocess(recipe.num_patches, int(hf.config.vision_config.patch_size))
    if isinstance(preprocess, NaflexPreprocess):
        return hf, replace(preprocess, num_patches=naflex.num_patches)
    return to_naflex(hf), replace(naflex, mean=preprocess.mean, std=preprocess.std)


def _check_siglip(model_type: str) -> None:
    if model_type not in ("siglip", "siglip2"):
        raise RecipeError(f"model.num_patches: NaFlex is for SigLIP, this is a {model_type}")
