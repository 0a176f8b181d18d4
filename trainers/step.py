"""Forward and backward of one optimizer step, whatever the task: accumulated, or cached where the loss needs all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pairloom.trainers.deepspeed_engine.engine import Engine
from pairloom.trainers.models.contrastive import Features
from pairloom.trainers.task import Batch, Task
from pairloom.trainers.tasks.contrastive import ContrastiveTask
from pairloom.trainers.tasks.grad_cache import cached_step


@dataclass(frozen=True)
class StepResult:
    """Of this rank's share; the gradients' norm is that of the global step."""

    loss: float
    gradient_norm: float
    figures: Mapping[str, float]


def take_step(task: Task, engine: Engine, batches: Sequence[Batch], num_targets: int) -> StepResult:
    """One optimizer step over this rank's micro-batches."""
    if isinstance(task, ContrastiveTask) and len(batches) > 1:
        return _cached(task, engine, batches)
    total, norm = 0.0, None
    figures: Mapping[str, float] = {}
    for batch in batches:
        loss, figures = task.loss(engine.deepspeed, batch, num_targets)
        total += float(loss.detach())
        norm = engine.backward_and_step(loss * len(batches))  # DeepSpeed divides by the number of micro-batches
    return StepResult(total, norm or 0.0, figures)


def _cached(task: ContrastiveTask, engine: Engine, batches: Sequence[Batch]) -> StepResult:
    figures: Mapping[str, float] = {}

    def loss_of(features: Features) -> torch.Tensor:
        nonlocal figures
        loss, figures = task.loss_of(features)
        return loss

    loss, norm = cached_step(
        batches,
        lambda batch: task.features(engine.deepspeed, batch),
        loss_of,
        lambda share: engine.backward_and_step(share * len(batches)),
    )
    return StepResult(float(loss), norm or 0.0, figures)
