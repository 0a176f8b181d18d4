"""Checkpoints: `checkpoints/step-0000100/` is complete when its manifest.json (sha256 of every file) is there.

deepspeed/    what DeepSpeed needs to go on: optimizer and weights, a file or two a rank
model/        a Hugging Face folder of the whole model, frozen parameters included
state.json    step, samples_seen, world_size, zero_stage, data
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from schemas import storage
from schemas.errors import InputError, RecipeError
from trainers.distributed import rank, world_size
from trainers.engine import Engine, whole_state
from trainers.task import Task

logger = logging.getLogger("pairloom.train")
PARTIAL = ".partial"


@dataclass(frozen=True)
class TrainState:
    """How far a run is; `samples_seen` is the whole state of the data stream."""

    step: int
    samples_seen: int
    world_size: int
    zero_stage: int
    data: Sequence[Mapping[str, str | None]] = ()  # path and manifest_hash of each data set


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` steps."""
    return f"step-{step:07d}"


def save_checkpoint(engine: Engine, task: Task, state: TrainState, run_dir: Path, keep: int) -> Path:
    """Write a checkpoint and remove all but the newest `keep`; every rank calls it."""
    final = run_dir / "checkpoints" / folder_name(state.step)
    partial = final.with_name(final.name + PARTIAL)
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.deepspeed.save_checkpoint(str(partial), tag="deepspeed", save_latest=False)
    weights = whole_state(engine)
    dist.barrier()
    if rank() == 0:
        task.save_model(str(partial / "model"), weights)
        (partial / "state.json").write_text(json.dumps(asdict(state), sort_keys=True))
        _seal(partial)
        _remove(final)
        partial.rename(final)
        _prune(run_dir, keep)
    dist.barrier()
    return final


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(folder)): storage.sha256_of(str(path)) for path in files}
    storage.put_bytes(str(folder / "manifest.json"), json.dumps(hashes, indent=1, sort_keys=True).encode())


def _prune(run_dir: Path, keep: int) -> None:
    for old in complete_checkpoints(run_dir)[:-keep]:
        _remove(old)


def _remove(checkpoint: Path) -> None:
    """Its manifest goes first: what is left after an interruption is not complete."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (run_dir / "checkpoints").glob("step-*/manifest.json")
    return sorted(path.parent for path in found if not path.parent.name.endswith(PARTIAL))


def newest_state(run_dir: Path) -> TrainState | None:
    """The state of the newest complete checkpoint."""
    checkpoints = complete_checkpoints(run_dir)
    return read_state(checkpoints[-1]) if checkpoints else None


def read_state(checkpoint: Path) -> TrainState:
    """The state of one checkpoint."""
    return TrainState(**json.loads((checkpoint / "state.json").read_text()))


def load_checkpoint(engine: Engine, saved: TrainState, now: TrainState, run_dir: Path) -> None:
    """Put the engine back where `saved` was. Raises RecipeError (other data, ranks or stage), InputError (damaged)."""
    checkpoint = run_dir / "checkpoints" / folder_name(saved.step)
    for before, after in zip(saved.data, now.data, strict=False):
        if before["manifest_hash"] != after["manifest_hash"]:
            raise RecipeError(
                f"data.train: {after['path']} is not what {run_dir} began with; name another run.dir, "
                "or the folder of the data set that it began with"
            )
    if saved.world_size != world_size() and saved.zero_stage != 0:
        raise RecipeError(
            f"{checkpoint}: saved by {saved.world_size} ranks, now {world_size()}; ZeRO stage {saved.zero_stage} goes "
            f"on with as many ranks (--num-processes {saved.world_size})"
        )
    if rank() == 0:
        verify(checkpoint)
    dist.barrier()
    engine.deepspeed.load_checkpoint(str(checkpoint), tag="deepspeed")


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest: DeepSpeed unpickles them. Raises InputError."""
    for name, digest in json.loads((checkpoint / "manifest.json").read_text()).items():
        path = checkpoint / name
        if not path.exists() or storage.sha256_of(str(path)) != digest:
            raise InputError(f"{path}: damaged or missing; remove {checkpoint} to go on from the one before")


def remove_partial(run_dir: Path) -> None:
    """Remove what an interrupted save or removal left."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.name.endswith(PARTIAL) or not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
