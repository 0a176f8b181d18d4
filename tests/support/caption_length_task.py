"""A task as another package would write it: it predicts caption lengths from images, and uses all of the protocol.

A vision tower is exported. Beside it: a head that only training needs, a centre of features that checkpoints keep, two
losses with weights, a second phase, and crops as a further view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from pairloom.registry import TASKS
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.task import TaskRecipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.optimizers.parameter_groups import group_parameters
from pairloom.trainers.ranks import world_size
from pairloom.trainers.task import Batch, ParameterGroup, Task, TrainSample, View

SIZE, WIDTH = 32, 16


class CaptionLengthRecipe(TaskRecipe):
    """`task: {kind: caption-length}`."""

    kind: Literal["caption-length"]
    spread_weight: float = 0.1
    centre_decay: float = 0.9

    def check(self, recipe: TrainRecipe) -> None:
        if recipe.model.llava is not None:
            raise ValueError("task.kind: caption-length takes no model.llava")

    def build(self, recipe: TrainRecipe, tokenizer_folder: str | None) -> CaptionLengthTask:
        return CaptionLengthTask(self, recipe)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            image_size=SIZE, patch_size=8,
        )  # fmt: skip
        self.hf = SiglipVisionModel(config)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, pixels_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        features_BW = self.hf(pixel_values=values).pooler_output
        return features_BW, self.head(features_BW)[:, 0]


class CaptionLengthTask(Task):
    extra_views = (View("crops", Preprocess(SIZE), count=2, crop_area=(0.3, 0.6)),)
    loss_terms = ("loss_regression", "loss_spread")
    phase_starts = (0.0, 0.5)

    def __init__(self, task: CaptionLengthRecipe, recipe: TrainRecipe) -> None:
        torch.manual_seed(recipe.run.seed)
        self.model: nn.Module = _Model()
        self.preprocess = Preprocess(SIZE)
        self._task, self._optimizer, self._weight = task, recipe.optimizer, 0.0
        self._centre_W, self._sum_W, self._count = torch.zeros(WIDTH), torch.zeros(WIDTH), 0

    def parameter_groups(self) -> list[ParameterGroup]:
        return group_parameters(self.model, self._optimizer)

    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        images = [sample.pixels for sample in samples if sample.pixels is not None]
        crops = [sample.views["crops"] for sample in samples]
        lengths = [len(sample.caption) / 32 for sample in samples]
        return {
            "pixels": torch.from_numpy(np.stack(images)),
            "crops": torch.from_numpy(np.concatenate(crops)),
            "lengths": torch.tensor(lengths),
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {"samples": len(batch["pixels"]), "images": len(batch["pixels"]) + len(batch["crops"])}

    def begin_step(self, samples_seen: int, phase: int) -> None:
        self._weight = self._task.spread_weight * phase
        self._sum_W, self._count = torch.zeros(WIDTH), 0

    def loss(
        self, engine: nn.Module, batch: Batch, counts: Mapping[str, int]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        features, lengths = engine(torch.cat([batch["pixels"], batch["crops"]]))
        size = len(batch["pixels"])
        self._sum_W += features.detach().sum(dim=0)
        self._count += len(features)
        regression = (lengths[:size] - batch["lengths"]).square().sum() * (world_size() / counts["samples"])
        spread = (features - self._centre_W).square().sum() * (world_size() / counts["images"])
        figures = {"loss_regression": float(regression.detach()), "loss_spread": float(spread.detach())}
        return regression + self._weight * spread, figures

    def end_step(self) -> None:
        sums = torch.cat([self._sum_W, torch.tensor([float(self._count)])])
        dist.all_reduce(sums)
        self._centre_W.lerp_(sums[:-1] / sums[-1], 1 - self._task.centre_decay)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {"centre": self._centre_W}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._centre_W = tensors["centre"].clone()

    def auxiliary_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in state.items() if name.startswith("head.")}

    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        hf: Any = self.model.hf
        preprocess: Any = self.preprocess
        exported = {name.removeprefix("hf."): value for name, value in state.items() if name.startswith("hf.")}
        hf.save_pretrained(folder, state_dict=exported)
        config = preprocess.processor_config("SiglipImageProcessor")
        Path(folder, "preprocessor_config.json").write_text(json.dumps(config))


def register() -> None:
    """Make the kind known to this process; a package has an entry point instead."""
    TASKS.register("caption-length", CaptionLengthRecipe)
