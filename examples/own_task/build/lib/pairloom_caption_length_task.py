"""The work of the task `caption_length`: a vision model, which is exported, and a regression head beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pairloom_caption_length import CaptionLength
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from pairloom.plugins import Batch, ParameterGroup, Task, TrainSample, group_parameters, load_preprocess, world_size

if TYPE_CHECKING:
    from pairloom import TrainRecipe


class Regressor(nn.Module):
    """Image features -> one number."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.vision = AutoModel.from_pretrained(folder)
        self.head = nn.Linear(self.vision.config.hidden_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, size, size] -> predicted lengths [B]."""
        return self.head(self.vision(pixel_values=pixel_values).pooler_output)[:, 0]


class CaptionLengthTask(Task):
    """Mean squared error of the lengths over the samples of a global step."""

    def __init__(self, settings: CaptionLength, recipe: TrainRecipe) -> None:
        torch.manual_seed(recipe.run.seed)
        self._settings, self._optimizer, self._folder = settings, recipe.optimizer, str(recipe.model.path)
        self.model: nn.Module = Regressor(self._folder)
        self.preprocess = load_preprocess(self._folder)

    def parameter_groups(self) -> list[ParameterGroup]:
        """By weight decay and depth."""
        return group_parameters(self.model, self._optimizer)

    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        """`pixel_values` [B, 3, size, size] and `lengths` [B]."""
        pixels = np.stack([sample.pixels for sample in samples])
        lengths = [len(sample.caption.split()) / self._settings.max_words for sample in samples]
        return {
            "pixel_values": torch.from_numpy(self.preprocess.normalise(pixels)),
            "lengths": torch.tensor(lengths),
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """The loss is a mean over samples."""
        return {"samples": len(batch["lengths"])}

    def loss(
        self, engine: nn.Module, batch: Batch, counts: Mapping[str, int]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Scaled so that the mean over ranks of the sum over micro-batches is the mean over all samples."""
        errors = engine(batch["pixel_values"]).float() - batch["lengths"]
        return errors.square().sum() * (world_size() / counts["samples"]), {}

    def auxiliary_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The head stays in checkpoints and is not exported."""
        return {name: tensor for name, tensor in state.items() if name.startswith("head.")}

    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        """A plain vision model of transformers."""
        weights = {name.removeprefix("vision."): value for name, value in state.items() if name.startswith("vision.")}
        self.model.vision.save_pretrained(folder, state_dict=weights)
        AutoImageProcessor.from_pretrained(self._folder).save_pretrained(folder)
