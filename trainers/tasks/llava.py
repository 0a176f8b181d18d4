"""LLaVA as a task: `align` trains the projector, `instruct` the projector and the language model.

Shapes: B samples of the micro-batch, L tokens of its longest sample, I images, T target tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import RecipeError, SampleError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import OptimizerRecipe, TrainRecipe
from pairloom.trainers.models.language import LANGUAGE_PRESETS
from pairloom.trainers.models.llava import LlavaFolder, build_llava, load_llava, trained_vision_names
from pairloom.trainers.models.llava_folder import save_llava
from pairloom.trainers.ranks import world_size
from pairloom.trainers.task import Batch, ParameterGroup, Task, TrainSample
from pairloom.trainers.tasks.llava_recipe import LlavaRecipe
from pairloom.trainers.text.chat import (
    IGNORE_LABEL,
    JINJA_TEMPLATES,
    Rendered,
    Renderer,
    TemplateName,
    caption_conversation,
    num_image_tokens,
    without_image,
)

logger = logging.getLogger("pairloom.llava")


class LlavaTask(Task):
    """One objective for both stages: the token losses of the answers over their number in the global step."""

    preprocess: Preprocess

    def __init__(self, parts: LlavaFolder, task: LlavaRecipe, optimizer: OptimizerRecipe) -> None:
        self.model: nn.Module = parts.model
        self.preprocess = parts.preprocess
        self._config = parts.model.config
        self._tokenizer = parts.tokenizer
        self._task, self._optimizer = task, optimizer
        vision_config, strategy = self._config.vision_config, self._config.vision_feature_select_strategy
        self._num_image_tokens = num_image_tokens(vision_config, strategy)
        name: TemplateName = task.template or ("plain" if task.mode == "align" else "vicuna_v1")
        self._renderer = Renderer(parts.tokenizer, name, self._num_image_tokens, task.max_length)
        # A language model that can chat still does after align: plain is exported only where there is nothing else.
        if name in JINJA_TEMPLATES and not (name == "plain" and self._tokenizer.chat_template):
            self._tokenizer.chat_template = JINJA_TEMPLATES[name]
        self._freeze(parts.has_linear_projector)
        self._saved_names = frozenset(self.model.state_dict())

    def _freeze(self, has_linear_projector: bool) -> None:
        """Leave a gradient only to what this stage trains."""
        is_blind, is_instruct = self._task.blind, self._task.mode == "instruct"
        vision_names = set(trained_vision_names(self.model)) if self._task.vision_learning_rate else set()
        for name, parameter in self.model.named_parameters():
            if name.startswith("model.vision_tower."):
                parameter.requires_grad = name in vision_names and not is_blind
            elif name.startswith("model.multi_modal_projector."):
                is_identity = has_linear_projector and ".linear_2." in name
                parameter.requires_grad = not is_blind and not is_identity
            else:
                parameter.requires_grad = is_instruct

    def parameter_groups(self) -> list[ParameterGroup]:
        """Trainable parameters by learning rate (vision tower, the rest) and weight decay (none on vectors)."""
        groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                key = (name.startswith("model.vision_tower."), parameter.ndim >= 2)
                groups.setdefault(key, []).append((name, parameter))
        vision_rate, rate = self._task.vision_learning_rate, self._optimizer.learning_rate
        return [
            ParameterGroup(
                names=tuple(name for name, _ in members),
                parameters=tuple(parameter for _, parameter in members),
                weight_decay=self._optimizer.weight_decay if decays else 0.0,
                learning_rate=vision_rate if is_vision else rate,
            )
            for (is_vision, decays), members in sorted(groups.items(), key=lambda item: item[0])
        ]

    def render(self, sample: TrainSample) -> Rendered:
        """Tokens and labels of one sample. Raises SampleError when nothing of it can be trained on."""
        conversation = sample.conversation or caption_conversation(sample.uid, sample.caption)
        if self._task.blind:
            return self._renderer.render(without_image(conversation))
        rendered = self._renderer.render(conversation)
        if rendered.has_image and sample.pixels is None:
            raise SampleError(DropReason.MISSING_IMAGE, f"{sample.uid}: the conversation has an image, the sample none")
        return rendered

    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        """`input_ids`, `labels`, `attention_mask` [B, L] and `pixel_values` [I, 3, size, size].

        A sample that cannot be rendered is left out, with a warning: every loss is over the tokens that are there.
        Where no sample has an image, one row ends in a black image that nothing attends to and no label follows:
        the vision tower must run on every rank (ZeRO-3 gathers its weights together).
        """
        rows: list[Rendered] = []
        images: list[torch.Tensor] = []
        for sample in samples:
            try:
                row = self.render(sample)
            except SampleError as error:
                logger.warning("sample %s left out of its step: %s", sample.uid, error)
                continue
            rows.append(row)
            if row.has_image and sample.pixels is not None:
                images.append(torch.from_numpy(self.preprocess.normalise(sample.pixels[None])))
        rows = rows or [self._empty_row()]
        if not images and not self._task.blind:
            rows = self._add_black_image(rows)
            size = self.preprocess.size
            images.append(torch.from_numpy(self.preprocess.normalise(np.zeros((1, size, size, 3), np.uint8))))
        batch = self._pad(rows, [len(row.token_ids) for row in rows])
        if images:
            batch["pixel_values"] = torch.cat(images)
        return batch

    def _empty_row(self) -> Rendered:
        return Rendered([int(self._tokenizer.eos_token_id)], [IGNORE_LABEL], False)

    def _add_black_image(self, rows: Sequence[Rendered]) -> list[Rendered]:
        shortest = min(range(len(rows)), key=lambda index: len(rows[index].token_ids))
        row, count = rows[shortest], self._num_image_tokens
        token_ids = row.token_ids + [int(self._config.image_token_id)] * count
        longer = Rendered(token_ids, row.labels + [IGNORE_LABEL] * count, True)
        return [longer if index == shortest else other for index, other in enumerate(rows)]

    def _pad(self, rows: Sequence[Rendered], lengths: Sequence[int]) -> Batch:
        B, L = len(rows), max(lengths)
        input_ids = torch.full((B, L), int(self._tokenizer.pad_token_id))
        labels = torch.full((B, L), IGNORE_LABEL)
        attention_mask = torch.zeros((B, L), dtype=torch.long)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[index, :length] = torch.tensor(row.token_ids)
            labels[index, :length] = torch.tensor(row.labels)
            attention_mask[index, :length] = 1
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Target tokens: labels without the first of each row, which no token precedes."""
        return {"tokens": int((batch["labels"][:, 1:] != IGNORE_LABEL).sum())}

    def loss(
        self, engine: nn.Module, batch: Batch, counts: Mapping[str, int]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Sum of this micro-batch's token losses * world_size / number of target tokens of the global step."""
        next_BL = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_LABEL)
        is_target_BL = next_BL != IGNORE_LABEL
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in batch}
        # The vocabulary's logits are the largest tensor of a step: only those of target tokens are made.
        logits_TV = engine(**inputs, logits_to_keep=is_target_BL, use_cache=False).logits
        total = functional.cross_entropy(logits_TV.float(), next_BL[is_target_BL], reduction="sum")
        return total * (world_size() / max(counts["tokens"], 1)), {}

    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write the Hugging Face folder of a whole state dict (buffers that no folder holds are left out)."""
        kept = {name: tensor for name, tensor in state.items() if name in self._saved_names}
        save_llava(folder, self.model, kept, self._tokenizer, self.preprocess)


def build_llava_task(recipe: TrainRecipe, tokenizer_folder: str | None) -> LlavaTask:
    """Task of a recipe; `tokenizer_folder`: the run's own tokenizer, null: the language folder's. Raises UserError."""
    task = recipe.task
    if not isinstance(task, LlavaRecipe):
        raise RecipeError(f"task.kind: {task.kind} is no llava task")
    if task.mode == "align" and (task.blind or task.vision_learning_rate):
        raise RecipeError("task.mode: align trains the projector on images; blind and vision_learning_rate: instruct")
    parts_of = recipe.model.llava
    has_tokenizer = recipe.model.path or (parts_of and parts_of.language not in LANGUAGE_PRESETS)
    if has_tokenizer and (recipe.tokenizer.path or recipe.tokenizer.train):
        raise RecipeError("tokenizer: belongs to a language preset; a language model's folder brings its own")
    folder = recipe.init_from or recipe.model.path
    if folder is not None:
        parts = load_llava(folder)
    elif recipe.model.llava is not None:
        parts = build_llava(recipe.model.llava, tokenizer_folder, recipe.run.seed)
    else:
        raise RecipeError("model: task.kind llava takes model.llava or model.path")
    return LlavaTask(parts, task, recipe.optimizer)
