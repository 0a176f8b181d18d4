"""Task: what is trained. The loop in `train.py` knows this base class only, and no task by name.

The loop owns time, data order, DeepSpeed, checkpoints, metrics and evaluation. A task owns the rest: model, views of a
sample, batches, the step with its losses, tensors beside the weights, and the exported folder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pairloom.schemas.conversation import Conversation
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.naflex import AnyPreprocess, Grid, NaflexPreprocess
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.trainers.ranks import sum_over_ranks

Batch = dict[str, torch.Tensor]
PROBE_SIDE = 64  # px, of the image of which NaFlex takes the shape


@dataclass(frozen=True)
class View:
    """One or more transformed images of a sample, beside the image that `Task.preprocess` prepares.

    The crops are functions of (seed, name, number of the crop, epoch, uid): the same on any number of ranks.
    """

    name: str
    preprocess: Preprocess
    count: int = 1
    crop_area: tuple[float, float] | None = None
    """Range of the share of the image's area that a crop keeps; None: the whole image."""


@dataclass(frozen=True)
class TrainSample:
    """One decoded sample."""

    uid: str
    pixels: Pixels | None
    """uint8 [size, size, 3], or of NaFlex [N, bytes of a patch]; None: a text-only conversation."""
    caption: str
    conversation: Conversation | None = None
    image_id: str | None = None
    """Samples of equal image bytes share it; None: not known."""
    grid: Grid | None = None
    """NaFlex: rows and columns of patches. The rest of `pixels` is padding."""
    views: Mapping[str, Pixels] = field(default_factory=dict)
    """By name of `Task.extra_views`: uint8 [count, size, size, 3]."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that share a weight decay and a learning rate."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    learning_rate: float
    """At the peak of the schedule."""
    is_hidden: bool = False
    """Matrices inside layers, which Muon takes. Set for Muon only."""


class StepEngine(Protocol):
    """DeepSpeed's engine as a task sees it."""

    @property
    def deepspeed(self) -> Any:
        """Call it in place of the model."""
        ...

    def backward_and_step(self, loss: torch.Tensor) -> float | None:
        """Backward of one micro-batch; after the last one the optimizer steps and the gradient norm is returned.

        DeepSpeed divides the loss by the number of micro-batches.
        """
        ...


@dataclass(frozen=True)
class StepResult:
    """Loss and figures of this rank's share of a step; the gradient norm is that of the global step."""

    loss: float
    gradient_norm: float
    figures: Mapping[str, float]
    """For metrics.jsonl, equal on all ranks."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Parts of the loss by name; metrics.jsonl gets their means over ranks."""


class Task(ABC):
    """Model, batches, losses and step of one objective.

    Losses are scaled so that the mean over ranks of the sum over a rank's micro-batches is the loss of the global
    step: DeepSpeed averages gradients over ranks.
    """

    model: nn.Module
    """What the optimizer trains: the exported module, and heads beside it that only training needs."""
    preprocess: AnyPreprocess
    """How images are prepared, in training and by the processor of the export."""
    extra_views: tuple[View, ...] = ()
    """Further images that the loader makes of each sample."""
    loss_terms: tuple[str, ...] = ()
    """Names of figures of `loss` that are parts of it, scaled as it is: they are summed over micro-batches."""
    phase_starts: tuple[float, ...] = (0.0,)
    """Fractions of run.total_samples, ascending, at which a phase begins."""

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """Trainable parameters; all others are frozen. Called once, before ZeRO-3 cuts parameters up."""

    @abstractmethod
    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        """Samples of a micro-batch -> tensors on the CPU."""

    @abstractmethod
    def counts(self, batch: Batch) -> Mapping[str, int]:
        """What the losses are averaged over, counted in this batch: samples, tokens, masked patches."""

    @abstractmethod
    def loss(
        self, engine: nn.Module, batch: Batch, counts: Mapping[str, int]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """fp32 loss of one micro-batch, scaled as above, and figures for metrics.jsonl.

        `counts` are those of the global step. `engine` stands for the model and is called once. Before the first
        step it is called for `probe_batch`, too: reset what a step sums up in `begin_step`.
        """

    @abstractmethod
    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write a Hugging Face folder: config, weights, tokenizer, processor. `state` is the whole state of `model`."""

    def probe_batch(self) -> Batch:
        """A tiny artificial batch on the CPU, the same on every rank, whose loss reaches every trained parameter.

        Parameters that its loss does not depend on are frozen.
        """
        return self.collate(probe_samples(self.preprocess, self.extra_views))

    def phase_at(self, samples_seen: int, total_samples: int) -> int:
        """Number of the phase of a step that begins after `samples_seen` samples."""
        starts = [math.ceil(start * total_samples) for start in self.phase_starts]
        return bisect_right(starts, samples_seen) - 1

    def begin_step(self, samples_seen: int, phase: int) -> None:  # noqa: B027  most tasks draw nothing
        """Called before the batches of a step are collated. Random draws are functions of samples_seen and the uid."""

    def take_step(self, engine: StepEngine, batches: Sequence[Batch]) -> StepResult:
        """One optimizer step over this rank's micro-batches, on the model's device. Every rank calls it.

        Gradients are accumulated; counts are summed over all ranks before the first backward.
        """
        counts = self.global_counts(batches)
        total, norm = 0.0, None
        figures: Mapping[str, float] = {}
        terms = dict.fromkeys(self.loss_terms, 0.0)
        for batch in batches:
            loss, figures = self.loss(engine.deepspeed, batch, counts)
            total += float(loss.detach())
            terms = {name: value + figures[name] for name, value in terms.items()}
            norm = engine.backward_and_step(loss * len(batches))
        others = {name: value for name, value in figures.items() if name not in terms}
        return StepResult(total, norm or 0.0, others, terms)

    def global_counts(self, batches: Sequence[Batch]) -> dict[str, int]:
        """Counts of the global step. Every rank calls it; all have the same names."""
        own: dict[str, int] = {}
        for batch in batches:
            for name, value in self.counts(batch).items():
                own[name] = own.get(name, 0) + value
        return dict(zip(own, (int(total) for total in sum_over_ranks(*own.values())), strict=True))

    def end_step(self) -> None:  # noqa: B027  most tasks keep nothing
        """Called after the optimizer has stepped: update averages, centres or queues."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """Tensors beside the weights that a checkpoint keeps, equal on all ranks, by name."""
        return {}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` gave."""
        if tensors:
            raise InputError(f"{type(self).__name__} keeps no state; the checkpoint has {', '.join(tensors)}")

    def auxiliary_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The part of a whole state dict of `model` that the exported folder does not hold: heads of the training."""
        return {}


def probe_samples(preprocess: AnyPreprocess, views: Sequence[View] = (), count: int = 2) -> list[TrainSample]:
    """Black images with captions."""
    grid = preprocess.grid(PROBE_SIDE, PROBE_SIDE) if isinstance(preprocess, NaflexPreprocess) else None
    pixels = np.zeros(preprocess.out_shape, np.uint8)
    further = {view.name: np.zeros((view.count, *view.preprocess.out_shape), np.uint8) for view in views}
    return [TrainSample(f"probe {index}", pixels, "a photo", grid=grid, views=further) for index in range(count)]
