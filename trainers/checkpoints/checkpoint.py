"""Checkpoints: `checkpoints/step-0000100/` is complete when its manifest.json (sha256 of every file) is there.

optimizer/    rank-00000.safetensors, ...: weights and moments of the trained parameters, in pieces by name
frozen.safetensors    frozen parameters and buffers, which no optimizer holds
model/        a Hugging Face folder of the whole model
state.json    step, samples_seen, world_size, zero_stage, data
auxiliary.safetensors     heads that only training needs, whole; absent where the task has none
task_state.safetensors    tensors that the task keeps beside the weights; absent where it keeps none

They are files alone: any number of ranks at any ZeRO stage goes on with them. `async_writer` writes them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.storage.digests import sha256_of
from pairloom.trainers.deepspeed_engine.engine import Engine
from pairloom.trainers.deepspeed_engine.optimizer_state import restore
from pairloom.trainers.ranks import join_lists, rank, world_size
from pairloom.trainers.task import Task

logger = logging.getLogger("pairloom.train")
MANIFEST = "manifest.json"
FROZEN = "frozen.safetensors"
AUXILIARY = "auxiliary.safetensors"
TASK_STATE = "task_state.safetensors"


@dataclass(frozen=True)
class TrainState:
    """How far a run is; `samples_seen` is the whole state of the data stream."""

    step: int
    samples_seen: int
    world_size: int
    zero_stage: int
    data: Sequence[Mapping[str, str | int | None]] = ()  # path, manifest_hash, num_samples, num_shards of each data set


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` steps."""
    return f"step-{step:07d}"


def optimizer_file(rank_number: int) -> str:
    """What one rank writes, below the checkpoint."""
    return f"optimizer/rank-{rank_number:05d}.safetensors"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob(f"step-*/{MANIFEST}"))


def newest_state(run_dir: Path) -> TrainState | None:
    """The state of the newest complete checkpoint."""
    checkpoints = complete_checkpoints(run_dir)
    return read_state(checkpoints[-1]) if checkpoints else None


def read_state(checkpoint: Path) -> TrainState:
    """The state of one checkpoint."""
    return TrainState(**json.loads((checkpoint / "state.json").read_text()))


def load_checkpoint(engine: Engine, task: Task, saved: TrainState, now: TrainState, run_dir: Path) -> None:
    """Restore the engine and the task as of `saved`. Raises RecipeError (other data), InputError (damaged)."""
    checkpoint = run_dir / "checkpoints" / folder_name(saved.step)
    for before, after in zip(saved.data, now.data, strict=False):
        if before["manifest_hash"] != after["manifest_hash"]:
            raise RecipeError(
                f"data.train: {after['path']} is not what {run_dir} began with; name another run.dir, "
                "or the folder of the data set that it began with"
            )
    verify(checkpoint)
    files = sorted((checkpoint / "optimizer").glob("rank-*.safetensors"))
    if not files:
        raise InputError(f"{checkpoint}: written by an older pairloom; go on with that, or name another run.dir")
    if saved.world_size != world_size():
        logger.info("%s: saved by %d ranks, goes on with %d", run_dir, saved.world_size, world_size())
    frozen_since = restore(engine, files)
    restore_frozen(engine, checkpoint / FROZEN, frozen_since)
    task_state = checkpoint / TASK_STATE
    task.load_state(load_file(task_state) if task_state.exists() else {})


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest; the ranks share the work and all raise InputError."""
    hashes: Mapping[str, str] = json.loads((checkpoint / MANIFEST).read_text())
    own = sorted(hashes)[rank() :: world_size()]
    wrong = join_lists([name for name in own if not _is_whole(checkpoint / name, hashes[name])])
    if wrong:
        raise InputError(
            f"{checkpoint / wrong[0]}: damaged or missing; remove {checkpoint} to go on from the one before"
        )


def _is_whole(path: Path, digest: str) -> bool:
    return path.exists() and sha256_of(str(path)) == digest


@torch.no_grad()
def restore_frozen(engine: Engine, path: Path, further: Mapping[str, torch.Tensor]) -> None:
    """Load frozen parameters and buffers from the file and from `further`. Raises InputError where any is missing."""
    import deepspeed

    module = engine.deepspeed.module
    targets = {name: p for name, p in module.named_parameters() if not p.requires_grad} | saved_buffers(module)
    with safe_open(path, "pt") as file:
        if wrong := sorted(set(targets) ^ {*file.keys(), *further}):
            raise InputError(f"{path}: has other frozen tensors than the model: {', '.join(wrong[:3])}")
        for name, target in targets.items():
            values = further[name] if name in further else file.get_tensor(name)
            if hasattr(target, "ds_id"):  # ZeRO-3 has cut it
                with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
                    if rank() == 0:
                        target.copy_(values.view_as(target))
            else:
                target.copy_(values.view_as(target))


def saved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers by name, without those that are not persistent."""
    saved = set(module.state_dict())
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def remove_checkpoint(checkpoint: Path) -> None:
    """Its manifest goes first: what is left after an interruption is not complete."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def remove_partial(run_dir: Path) -> None:
    """Remove what an interrupted save or removal left."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
