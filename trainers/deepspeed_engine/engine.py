"""DeepSpeed around a task's model: start, whole weights from any ZeRO stage, device."""

from __future__ import annotations

import contextlib
import io
import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.deepspeed_engine.build_ops import build_ops
from pairloom.trainers.deepspeed_engine.config import deepspeed_config, micro_batch_size, zero_stage
from pairloom.trainers.deepspeed_engine.unused_parameters import freeze_unused
from pairloom.trainers.optimizers.optimizers import build_optimizer
from pairloom.trainers.ranks import local_rank, rank, world_size
from pairloom.trainers.task import Task

EXCHANGE_TIMEOUT = timedelta(hours=2)  # ranks wait while rank 0 saves, evaluates and exports


def start_process_group() -> None:
    """Join the ranks that the launcher started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    build_ops()
    import deepspeed

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=EXCHANGE_TIMEOUT)
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints what it has loaded
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def device() -> torch.device:
    """Device of this rank's model."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's engine with what the loop needs beside it."""

    deepspeed: Any
    zero_stage: int
    micro_batch_size: int
    peak_rates: tuple[float, ...]  # of the parameter groups
    has_average: bool  # of the weights, beside the optimizer's state

    def set_rate_factor(self, factor: float) -> None:
        """Every group's peak learning rate times `factor`, before a step."""
        for group, peak in zip(self.deepspeed.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor

    def backward_and_step(self, loss: torch.Tensor) -> float | None:
        """One micro-batch; the gradient norm (before clipping, NaN where it is not finite) after the last of a step."""
        engine = self.deepspeed
        engine.backward(loss)
        is_last = engine.is_gradient_accumulation_boundary()
        norm = self._norm_at_stage_0() if is_last and self.zero_stage == 0 else None
        engine.step()
        if not is_last:
            return None
        norm = float(engine.get_global_grad_norm() or 0.0) if norm is None else norm
        return norm if norm >= 0 else math.nan  # DeepSpeed says -1 for one that is no number

    def _norm_at_stage_0(self) -> float:
        """DeepSpeed keeps no norm at stage 0; every rank holds all gradients there."""
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def start_engine(task: Task, recipe: TrainRecipe) -> Engine:
    """DeepSpeed around the task's model. Raises RecipeError where sizes do not divide."""
    build_ops()
    import deepspeed

    micro = micro_batch_size(recipe, world_size())
    task.model.to(device())
    freeze_unused(task, device())
    groups = task.parameter_groups()  # before ZeRO-3 takes the shapes away
    optimizer = build_optimizer(recipe.optimizer, groups)
    engine, *_ = deepspeed.initialize(
        model=task.model,
        optimizer=optimizer,
        config=deepspeed_config(recipe, world_size(), micro),
        dist_init_required=False,
    )
    if world_size() == 1:
        engine.enable_backward_allreduce = False  # it copies all gradients into buckets and back
    rates = tuple(group.learning_rate for group in groups)
    return Engine(engine, zero_stage(recipe, world_size()), micro, rates, recipe.optimizer.average_decay is not None)


def whole_state(engine: Engine) -> dict[str, torch.Tensor]:
    """All parameters and buffers on the CPU of rank 0 (empty on the others); every rank calls it."""
    import deepspeed

    state: dict[str, torch.Tensor] = {}
    module = engine.deepspeed.module
    for name, parameter in module.named_parameters():
        if engine.zero_stage < 3:
            if rank() == 0:
                state[name] = parameter.detach().cpu().clone()
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            if rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    if rank() == 0:
        saved = set(module.state_dict())  # without buffers that are not persistent
        state |= {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers() if name in saved}
    return state


def limit_threads() -> None:
    """Divide the cores among the ranks of this machine, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
