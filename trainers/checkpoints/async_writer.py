"""Writes checkpoints while training goes on: tensors are copied to the CPU, a thread writes, the manifest is last.

Every rank writes and hashes its own file. Once per step the ranks check whether all have finished; then rank 0 writes
the manifest. A failed write is raised on every rank at the next step.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from pairloom.schemas.errors import PairloomError, StorageError
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of
from pairloom.trainers.checkpoints.checkpoint import (
    AUXILIARY,
    FROZEN,
    MANIFEST,
    TASK_STATE,
    TrainState,
    complete_checkpoints,
    folder_name,
    optimizer_file,
    remove_checkpoint,
)
from pairloom.trainers.checkpoints.remote_copy import RUN_FILES
from pairloom.trainers.checkpoints.run_folder import RunFolder
from pairloom.trainers.checkpoints.safetensors_writer import write_tensors
from pairloom.trainers.deepspeed_engine.engine import Engine, whole_state
from pairloom.trainers.deepspeed_engine.optimizer_state import Snapshot, take_snapshot
from pairloom.trainers.deepspeed_engine.weight_average import averaged_state
from pairloom.trainers.ranks import join_lists, local_rank, rank, sum_over_ranks
from pairloom.trainers.task import Task

logger = logging.getLogger("pairloom.train")


@dataclass
class Pending:
    """A checkpoint that is being written: by this rank's thread, into `folder`."""

    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)  # of this rank's files, by path below the folder
    error: Exception | None = None
    thread: threading.Thread | None = None


@dataclass(frozen=True)
class Weights:
    """On rank 0: all weights, and the moving average of the trained ones (empty without one)."""

    now: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor]
    task_state: Mapping[str, torch.Tensor]
    """What the task keeps beside the weights (empty without any)."""


class AsyncWriter:
    """Writes one checkpoint at a time; every rank calls every method at the same steps."""

    def __init__(self, engine: Engine, task: Task, run: RunFolder, keep: int) -> None:
        self._engine, self._task, self._run, self._keep = engine, task, run, keep
        self._pending: Pending | None = None
        module = engine.deepspeed.module
        self._trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    def begin(self, state: TrainState) -> Path:
        """Copy the tensors of `state` and begin to write them; returns the folder of the checkpoint."""
        self.finish()
        folder = self._run.path / "checkpoints" / folder_name(state.step)
        if local_rank() == 0:
            remove_checkpoint(folder)
        dist.barrier()
        snapshot, whole = take_snapshot(self._engine), whole_state(self._engine)
        average = averaged_state(self._engine) if self._engine.has_average else {}
        pending = Pending(folder)
        task_state = {name: tensor.detach().cpu().clone() for name, tensor in self._task.state().items()}
        work = (pending, state, snapshot, Weights(whole, average, task_state))
        pending.thread = threading.Thread(target=self._write, args=work, name="checkpoint", daemon=True)
        pending.thread.start()
        self._pending = pending
        return folder

    def poll(self) -> None:
        """Write the manifest if all ranks have finished. Raises the error of a rank that could not write."""
        if self._pending is None:
            return
        is_running = self._pending.thread is not None and self._pending.thread.is_alive()
        if sum_over_ranks(float(is_running))[0] == 0:
            self._complete()

    def finish(self) -> None:
        """Wait until the checkpoint is complete. Raises the error of a rank that could not write."""
        if self._pending is not None:
            if self._pending.thread is not None:
                self._pending.thread.join()
            self._complete()

    def _complete(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        errors = join_lists([str(pending.error)] if pending.error is not None else [])
        if errors:
            kind = type(pending.error) if isinstance(pending.error, PairloomError) else StorageError
            raise kind(f"checkpoint {pending.folder} could not be written: {errors[0]}") from pending.error
        hashes = dict(line.split("  ", 1)[::-1] for line in join_lists(_lines(pending.hashes)))
        if rank() == 0:
            text = json.dumps(hashes, indent=1, sort_keys=True)
            storage.put_bytes(str(pending.folder / MANIFEST), text.encode())
            self._run.put(self._name_of(pending.folder / MANIFEST))
            self._prune()
        dist.barrier()

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._run.path).as_posix()

    def _prune(self) -> None:
        for old in complete_checkpoints(self._run.path)[: -self._keep]:
            if self._run.remote_copy is not None:
                self._run.remote_copy.remove_checkpoint(old.name)
            remove_checkpoint(old)

    def _write(self, pending: Pending, state: TrainState, snapshot: Snapshot, weights: Weights) -> None:
        """Body of the thread. An error is kept until the next step raises it."""
        try:
            self._write_files(pending, state, snapshot, weights)
            self._run.put(*(self._name_of(pending.folder / name) for name in pending.hashes))
            if rank() == 0:
                self._run.put(*RUN_FILES)
        except Exception as error:  # noqa: BLE001  raised at the next step, whatever it is
            pending.error = error

    def _write_files(self, pending: Pending, state: TrainState, snapshot: Snapshot, weights: Weights) -> None:
        folder, name = pending.folder, optimizer_file(rank())
        pending.hashes[name] = write_tensors(folder / name, snapshot.tensors, snapshot.metadata)
        if rank() != 0:
            return
        frozen = {name: tensor for name, tensor in weights.now.items() if name not in self._trained}
        pending.hashes[FROZEN] = write_tensors(folder / FROZEN, frozen, {})
        auxiliary = self._task.auxiliary_state(weights.now)
        for file, tensors in ((AUXILIARY, auxiliary), (TASK_STATE, weights.task_state)):
            if tensors:
                pending.hashes[file] = write_tensors(folder / file, tensors, {})
        self._task.save_model(str(folder / "model"), weights.now)
        if weights.average:
            self._task.save_model(str(folder / "average"), {**weights.now, **weights.average})
        (folder / "state.json").write_text(json.dumps(asdict(state), sort_keys=True))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            relative = path.relative_to(folder).as_posix()
            if relative not in pending.hashes and not relative.startswith("optimizer/"):
                _sync(path)
                pending.hashes[relative] = sha256_of(str(path))


def _lines(hashes: Mapping[str, str]) -> list[str]:
    """As sha256sum writes them."""
    return [f"{digest}  {name}" for name, digest in hashes.items()]


def _sync(path: Path) -> None:
    """To the disk, so that a machine that loses power never has a manifest without its files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
