"""Figures of a run: metrics.jsonl, TensorBoard events, a bar on a terminal or plain lines elsewhere. Rank 0 only."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pairloom.console import ConsoleProgress
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage
from pairloom.trainers.checkpoints.checkpoint import TrainState
from pairloom.trainers.ranks import rank

RATE_SMOOTHING = 0.9


class Metrics:
    """Writes one record a step on rank 0; lines after the checkpoint that a run goes on from are cut away."""

    def __init__(self, run_dir: Path, recipe: TrainRecipe, state: TrainState) -> None:
        self._is_writer = rank() == 0
        self._total = recipe.run.total_samples
        self._num_samples = recipe.batch.global_batch_size
        if self._is_writer:
            self._open(run_dir, state)

    def _open(self, run_dir: Path, state: TrainState) -> None:
        self._path = run_dir / "metrics.jsonl"
        _cut_after(self._path, state.step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tb"), purge_step=state.step + 1)
        self._last_step = time.monotonic()
        self._rate = 0.0
        self._console = ConsoleProgress(
            str(run_dir), "samples", self._total, state.samples_seen, logger="pairloom.train"
        )
        self._console.start()

    def record(self, state: TrainState, figures: Mapping[str, float]) -> None:
        """The figures of the step that led to `state`; speed and memory are added."""
        if not self._is_writer:
            return
        now = time.monotonic()
        rate = self._num_samples / max(1e-9, now - self._last_step)
        self._rate = rate if self._rate == 0 else RATE_SMOOTHING * self._rate + (1 - RATE_SMOOTHING) * rate
        self._last_step = now
        values = {
            "step": state.step,
            "samples_seen": state.samples_seen,
            **figures,
            "samples_per_s": round(rate, 2),
            "memory_bytes": memory_bytes(),
        }
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name, value, state.step)
        self._show(state.step, state.samples_seen, figures)

    def _show(self, step: int, samples_seen: int, figures: Mapping[str, float]) -> None:
        note = f"loss {figures['loss']:.4f}  {self._rate:,.0f} samples/s"
        self._console.show(samples_seen, f"step {step}, {note}", is_last=samples_seen >= self._total)

    def close(self) -> None:
        """Finish all writers."""
        if not self._is_writer:
            return
        self._file.close()
        self._board.close()
        self._console.stop()


def memory_bytes() -> int:
    """Peak memory of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cut_after(path: Path, step: int) -> None:
    """Keep the lines of the first `step` steps; a half-written last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    storage.put_bytes(str(path), "".join(kept).encode())
