"""Task: what is trained. One protocol, so that one loop serves every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pairloom.schemas.conversation import Conversation
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.naflex import AnyPreprocess, Grid

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainSample:
    """One decoded sample: `pixels` are resized to what the model sees, uint8: [size, size, 3], of NaFlex [N, bytes]."""

    uid: str
    pixels: Pixels | None  # null: a text-only conversation
    caption: str
    conversation: Conversation | None = None
    image_id: str | None = None  # samples of equal bytes share it; null: not known
    grid: Grid | None = None  # NaFlex: rows and columns of patches; what follows them in `pixels` is padding


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that share a weight decay and a learning rate."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    learning_rate: float  # at the peak of the schedule
    is_hidden: bool = False  # matrices inside of layers, which Muon takes; told apart for Muon only


class Task(Protocol):
    """Model, batches and loss of one objective. The loop owns DeepSpeed, schedule, checkpoints and metrics.

    Losses are scaled so that the mean over ranks of (the sum over a rank's micro-batches) is the loss of
    the global step; that is what DeepSpeed's gradient averaging expects.
    """

    model: nn.Module  # its parameters are those of the exported Hugging Face class

    @property
    def preprocess(self) -> AnyPreprocess:
        """How pictures are prepared, in training and by the export's processor."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Trainable parameters; everything else is frozen."""
        ...

    def begin_step(self, samples_seen: int) -> None:
        """Called before a step's batches are collated; what a task draws is a function of it and the sample."""
        ...

    def collate(self, samples: Sequence[TrainSample]) -> Batch:
        """Samples -> tensors on the CPU."""
        ...

    def probe_batch(self) -> Batch:
        """A tiny artificial batch, the same on every rank, whose loss reaches every parameter that training uses."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """What the loss of a step is averaged over, counted in this batch (tokens or samples)."""
        ...

    def loss(
        self, engine: nn.Module, batch: Batch, num_targets_global: int
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """fp32 loss of one micro-batch, scaled as above, and figures for metrics.jsonl."""
        ...

    def save_model(self, folder: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write a Hugging Face folder (config, safetensors, tokenizer, processor) from a whole state dict."""
        ...
