"""Contrastive pretraining: two towers with a CLIP or SigLIP loss."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.naflex import NaflexPreprocess
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.deepspeed_engine.config import zero_stage
from pairloom.trainers.losses.clip import clip_loss
from pairloom.trainers.losses.siglip import siglip_loss
from pairloom.trainers.models.contrastive import ContrastiveModel, Features, load_model, new_model
from pairloom.trainers.models.hf_folder import model_type_of
from pairloom.trainers.models.naflex import naflex_inputs
from pairloom.trainers.models.presets import is_siglip2
from pairloom.trainers.models.towers import join_towers, max_text_tokens, pads_to_end
from pairloom.trainers.optimizers.parameter_groups import group_parameters
from pairloom.trainers.ranks import rank, world_size
from pairloom.trainers.task import Batch, ParameterGroup, StepEngine, StepResult, Task, TrainSample, probe_samples
from pairloom.trainers.tasks.contrastive_recipe import ContrastiveRecipe
from pairloom.trainers.tasks.frozen_tower_cache import FrozenTowerCache
from pairloom.trainers.tasks.grad_cache import cached_step
from pairloom.trainers.text.siglip2_tokenizer import load_siglip2_tokenizer

SQUASHING = {"siglip": "SiglipImageProcessor"}  # of other families: ViTImageProcessor; cropping: CLIPImageProcessor


class ContrastiveTask(Task):
    """Images against captions over the samples of all ranks."""

    def __init__(self, recipe: TrainRecipe, tokenizer_folder: str) -> None:
        task = recipe.task
        if not isinstance(task, ContrastiveRecipe):
            raise RecipeError(f"task.kind: {task.kind} is no contrastive task")
        self._task, self._optimizer = task, recipe.optimizer
        self._seed, self._samples_seen = recipe.run.seed, 0
        folder = recipe.init_from or recipe.model.path
        is_second = is_siglip2(recipe.model) or (folder is not None and model_type_of(folder) == "siglip2")
        load_tokenizer = load_siglip2_tokenizer if is_second else AutoTokenizer.from_pretrained
        self._tokenizer: Any = load_tokenizer(tokenizer_folder)
        torch.manual_seed(recipe.run.seed)
        if folder is not None:
            hf, self.preprocess = load_model(folder, recipe.model)
        elif recipe.model.dual is not None:
            hf, self.preprocess = join_towers(recipe.model.dual, recipe.model.image_size)
        else:
            hf, self.preprocess = new_model(recipe.model, len(self._tokenizer), _token_ids(self._tokenizer))
        self._model = ContrastiveModel(hf, task, is_new=folder is None)
        self._model.lock(recipe.model.locked)
        if recipe.model.activation_checkpointing:
            self._model.checkpoint_activations(zero_stage(recipe, world_size()))
        if recipe.model.compile:
            self._model.compile_layers()
        self.model: nn.Module = self._model
        self._caches = _open_caches(recipe, self._model)
        check_batch_statistics(recipe, self._model)
        self._pads_to_end = pads_to_end(hf.config)
        if self._tokenizer.pad_token_id is None and not self._pads_to_end:
            self._tokenizer.pad_token = self._tokenizer.eos_token  # as GPT's; the mask hides it
        check_tokenizer(self._tokenizer, hf.config, tokenizer_folder)
        self._tokenizer.model_max_length = min(max_text_tokens(hf.config), int(self._tokenizer.model_max_length))

    def parameter_groups(self) -> list[ParameterGroup]:
        """By weight decay and by depth."""
        return group_parameters(self.model, self._optimizer)

    def begin_step(self, samples_seen: int, phase: int) -> None:
        """Patches are drawn from the seed, `samples_seen` and the sample, on however many ranks."""
        self._samples_seen = samples_seen

    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        """pixels (uint8: normalised where the model lies) [B, S, S, 3], or of NaFlex [B, N, P] with spatial_shapes
        [B, 2]; input_ids and attention_mask [B, L]; for a locked tower what it gives instead.
        """
        uids = [sample.uid for sample in samples]
        batch = {}
        if "vision" in self._caches:
            batch["pooled_image"] = self._caches["vision"].lookup(
                [sample.image_id or sample.uid for sample in samples],
                lambda missing: self._pool_images([samples[index] for index in missing]),
            )
        else:
            batch |= _stack(samples)
            if self._task.patch_dropout:
                batch["kept_patches"] = self._draw_patches(uids)
        if "text" in self._caches:
            batch["pooled_text"] = self._caches["text"].lookup(
                uids, lambda missing: self._pool_texts([samples[index] for index in missing])
            )
        else:
            batch |= self._tokens(samples)
        return batch

    def probe_batch(self) -> Batch:
        """Black images with captions, for both towers; the caches of locked towers stay as they are."""
        samples = probe_samples(self.preprocess)
        return _stack(samples) | self._tokens(samples)

    def _draw_patches(self, uids: Sequence[str]) -> torch.Tensor:
        """Which patches of each image are seen [B, K], in their order."""
        total = self._model.num_patches
        num_kept = max(1, round(total * (1 - self._task.patch_dropout)))
        words = (self._seed, self._samples_seen)
        draws = [np.random.default_rng([*words, zlib.crc32(uid.encode())]).permutation(total) for uid in uids]
        return torch.from_numpy(np.sort(np.stack(draws)[:, :num_kept], axis=1))

    def _image_inputs(self, batch: Batch) -> Batch:
        """The batch with what the model takes in the place of `pixels`: as by `model_inputs` of the preprocess, bit for
        bit, on any device.
        """
        others = {name: tensor for name, tensor in batch.items() if name != "pixels"}
        pixels, preprocess = batch["pixels"], self.preprocess
        if isinstance(preprocess, NaflexPreprocess):
            return {**others, **naflex_inputs(pixels, batch["spatial_shapes"], preprocess)}
        mean, std = pixels.new_tensor([preprocess.mean, preprocess.std], dtype=torch.float32)[..., None, None]
        planes = pixels.permute(0, 3, 1, 2).contiguous()  # first: on a CPU it takes a third of the time then
        return {**others, "pixel_values": planes.float().mul_(1 / 255).sub_(mean).div_(std)}

    def _tokens(self, samples: Sequence[TrainSample]) -> Batch:
        tokens = self._tokenizer(
            [sample.caption for sample in samples],
            padding="max_length" if self._pads_to_end else "longest",
            truncation=True,
            max_length=self._tokenizer.model_max_length,
            return_tensors="pt",
        )
        names = ("input_ids",) if self._pads_to_end else ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names}

    @torch.no_grad()
    def _pool_images(self, samples: Sequence[TrainSample]) -> torch.Tensor:
        device = self._model.logit_scale.device
        batch = {name: tensor.to(device) for name, tensor in _stack(samples).items()}
        return self._model.pool_images(self._image_inputs(batch))

    @torch.no_grad()
    def _pool_texts(self, samples: Sequence[TrainSample]) -> torch.Tensor:
        tokens = self._tokens(samples)
        return self._model.pool_texts({name: t.to(self._model.logit_scale.device) for name, t in tokens.items()})

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Samples."""
        return {"samples": len(next(iter(batch.values())))}

    def loss(
        self, engine: nn.Module, batch: Batch, counts: Mapping[str, int]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The loss of this rank's rows against all ranks' columns; `batch` is its whole share."""
        features = self.features(engine, batch)
        loss, figures = self.loss_of(features)
        own = self.own_loss(features, batch, counts)
        return (loss if own is None else loss + own), figures

    def take_step(self, engine: StepEngine, batches: Sequence[Batch]) -> StepResult:
        """With several micro-batches by GradCache: the negatives are those of the whole global batch."""
        if len(batches) == 1:
            return super().take_step(engine, batches)
        counts = self.global_counts(batches)
        figures: Mapping[str, float] = {}

        def loss_of(features: Features) -> torch.Tensor:
            nonlocal figures
            loss, figures = self.loss_of(features)
            return loss

        loss, norm = cached_step(
            batches,
            lambda batch: self.features(engine.deepspeed, batch),
            loss_of,
            lambda value: engine.backward_and_step(value * len(batches)),
            lambda features, batch: self.own_loss(features, batch, counts),
        )
        return StepResult(float(loss), norm or 0.0, figures)

    def own_loss(self, features: Features, batch: Batch, counts: Mapping[str, int]) -> torch.Tensor | None:
        """A loss that is a sum over the samples of a micro-batch, scaled as in `Task`, beside the global one.

        `features` are those of the second pass, with their graph; None: there is no such loss.
        """
        return None

    def features(self, engine: nn.Module, batch: Batch) -> Features:
        """Features of a part of the share, or of all of it."""
        features: Features = engine(self._image_inputs(batch) if "pixels" in batch else batch)
        return features

    def loss_of(self, features: Features) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The loss of the features of this rank's whole share, and figures for metrics.jsonl."""
        if self._task.loss == "clip":
            loss = clip_loss(features.image, features.text, features.logit_scale)
        else:
            loss = siglip_loss(features.image, features.text, features.logit_scale, features.logit_bias)
        figures = {"logit_scale": float(features.logit_scale.detach())}
        if self._task.loss == "siglip":
            figures["logit_bias"] = float(features.logit_bias.detach())
        return loss, figures

    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write the Hugging Face folder."""
        model = self._model
        exported = {name: value.contiguous() for name, value in model.exported_state(state).items()}
        model.hf.save_pretrained(folder, state_dict=exported)
        self._tokenizer.save_pretrained(folder)
        if isinstance(self.preprocess, NaflexPreprocess):
            config = self.preprocess.processor_config()
        else:
            squashing = SQUASHING.get(model.hf.config.model_type, "ViTImageProcessor")
            crops = self.preprocess.mode == "center_crop"
            config = self.preprocess.processor_config("CLIPImageProcessor" if crops else squashing)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))


def _open_caches(recipe: TrainRecipe, model: ContrastiveModel) -> dict[str, FrozenTowerCache]:
    """A cache for each locked tower whose output is a function of the sample (ZeRO-3 takes the weights apart)."""
    if zero_stage(recipe, world_size()) == 3:
        return {}
    widths = {"vision": "vision_embed_dim", "text": "text_embed_dim"}
    is_augmented = {"vision": recipe.data.augment.random_resized_crop is not None, "text": False}
    return {
        tower: FrozenTowerCache(
            Path(recipe.run.dir, "locked", f"{tower}-{rank()}.bin"), int(getattr(model.hf, widths[tower]))
        )
        for tower in recipe.model.locked
        if not is_augmented[tower] and hasattr(model.hf, widths[tower])
    }


def check_batch_statistics(recipe: TrainRecipe, model: nn.Module) -> None:
    """Raise RecipeError where micro-batches would each be normalised by themselves, and counted twice."""
    micro = recipe.batch.micro_batch_size
    if micro is None or micro * world_size() >= recipe.batch.global_batch_size:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise RecipeError(
                f"batch.micro_batch_size {micro}: {name} normalises over the samples of a forward, which then has to "
                "hold a rank's whole share; lock the tower, or use more ranks"
            )


def _stack(samples: Sequence[TrainSample]) -> Batch:
    """`pixels`, and of NaFlex `spatial_shapes`, of samples that all have an image."""
    batch = {"pixels": torch.from_numpy(np.stack([sample.pixels for sample in samples if sample.pixels is not None]))}
    grids = [sample.grid for sample in samples if sample.grid is not None]
    return {**batch, "spatial_shapes": torch.tensor(grids)} if grids else batch


def check_tokenizer(tokenizer: Any, config: Any, folder: str) -> None:
    """Raise RecipeError where texts would get ids that the model does not have, or CLIP would pool at a wrong token."""
    size = int(config.text_config.vocab_size)
    if tokenizer.pad_token_id is None:
        raise RecipeError(f"tokenizer {folder}: has no pad token")
    if len(tokenizer) > size:
        raise RecipeError(f"tokenizer {folder}: has {len(tokenizer)} tokens, the model {size}; it belongs to another")
    if config.text_config.model_type != "clip_text_model":
        return
    eos = tokenizer.eos_token_id
    if eos is None or tokenizer("a")["input_ids"][-1] != eos:
        raise RecipeError(f"tokenizer {folder}: CLIP pools at the end-of-text token, and this one does not add it")
    if config.text_config.eos_token_id == 2 and eos != len(tokenizer) - 1:
        raise RecipeError(
            f"tokenizer {folder}: with end-of-text id 2 transformers' CLIP pools at the largest id instead"
        )


def _token_ids(tokenizer: Any) -> dict[str, int]:
    return {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
