"""The one training loop, for every task. Begin reading at `train`.

Started as one process a rank with torch's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT):

    python -m trainers.train RECIPE.json
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
import transformers

from schemas.errors import PairloomError, UserError
from schemas.recipe_io import parse_recipe
from schemas.train_recipe import TrainRecipe
from trainers.build_task import build_task, prepare_tokenizer
from trainers.checkpoint import (
    TrainState,
    complete_checkpoints,
    load_checkpoint,
    newest_state,
    remove_partial,
    save_checkpoint,
)
from trainers.data.dataset import Dataset, open_dataset
from trainers.data.decode import Loader, Share, shares
from trainers.data.stream import Order, Stream, check_world_size
from trainers.distributed import any_rank, rank, sum_over_ranks, world_size
from trainers.engine import Engine, calm_threads, device, start_engine, start_process_group
from trainers.metrics import Metrics
from trainers.run_folder import evaluate_checkpoint, finish_run, open_run
from trainers.schedule import rate_factor
from trainers.task import Batch, Task

T = TypeVar("T")
logger = logging.getLogger("pairloom.train")
MESSAGE_OF_NAN = "the loss is {loss} at step {step}; samples: {uids}; last good checkpoint: {checkpoint}"


@dataclass
class Training:
    """What the steps of a run share."""

    recipe: TrainRecipe
    run_dir: Path
    task: Task
    engine: Engine
    loader: Loader
    state: TrainState

    @property
    def num_steps(self) -> int:
        """Steps of the whole run; a last part of a global batch is not trained."""
        return self.recipe.run.total_samples // self.recipe.batch.global_batch_size


def train(recipe: TrainRecipe) -> None:
    """Train from the newest checkpoint to the end, then evaluate and export. Raises UserError, StorageError."""
    run_dir = open_run(recipe)
    training = start(recipe, run_dir)
    stop = StopSignal()
    metrics = Metrics(run_dir, recipe, training.state)
    try:
        for share in timed(shares(training.loader, training.state.step, training.num_steps, recipe.data.num_workers)):
            figures = train_step(training, share.value)
            training.state = advance(training)
            metrics.record(training.state, {**figures, "data_wait_fraction": share.wait_fraction})
            stops = any_rank(stop.received)
            save_or_evaluate(training, stops)
            if stops and training.state.step < training.num_steps:
                logger.info("stopped by a signal after step %d; run the same command to go on", training.state.step)
                return
    finally:
        metrics.close()
    finish_run(recipe, run_dir)


def start(recipe: TrainRecipe, run_dir: Path) -> Training:
    """Data, task and engine, at the newest checkpoint."""
    check_world_size(recipe.data.num_lanes, world_size())
    datasets = [open_dataset(source) for source in recipe.data.train]
    tokenizer = one_rank_first(lambda: prepare_tokenizer(recipe, datasets, run_dir))
    task = build_task(recipe, tokenizer)
    engine = start_engine(task, recipe)
    if rank() == 0:
        remove_partial(run_dir)
    state = newest_state(run_dir)
    if state is not None:
        load_checkpoint(engine, state, run_dir)
    else:
        state = TrainState(0, 0, world_size(), recipe.zero.stage)
    loader = make_loader(recipe, datasets, task)
    return Training(recipe, run_dir, task, engine, loader, state)


def make_loader(recipe: TrainRecipe, datasets: Sequence[Dataset], task: Task) -> Loader:
    """This rank's samples by step."""
    seed = recipe.run.seed
    orders = [Order(dataset.shard_sizes, seed, index) for index, dataset in enumerate(datasets)]
    weights = [source.weight for source in recipe.data.train]
    stream = Stream(orders, weights, recipe.data.num_lanes, recipe.batch.global_batch_size)
    return Loader(datasets, stream, task.preprocess, recipe.data.augment, seed, rank(), world_size())


def train_step(training: Training, share: Share) -> dict[str, float]:
    """One optimizer step over this rank's share; returns the figures of the global step."""
    task, engine, recipe = training.task, training.engine, training.recipe
    first_slot = rank() * recipe.batch.global_batch_size // world_size()
    torch.manual_seed(recipe.run.seed * 1_000_003 + training.state.samples_seen + first_slot)
    factor = rate_factor(recipe.optimizer, recipe.run.total_samples, training.state.samples_seen)
    engine.set_rate_factor(factor)
    batches = [to_device(batch) for batch in micro_batches(training, share)]
    num_targets = int(sum_over_ranks(sum(task.num_targets(batch) for batch in batches), device()))
    total, norm = 0.0, None
    figures: Mapping[str, float] = {}
    for batch in batches:
        loss, figures = task.loss(engine.deepspeed, batch, num_targets)
        total += float(loss.detach())
        norm = engine.backward_and_step(loss * len(batches))  # DeepSpeed divides by the number of micro-batches
    mean = sum_over_ranks(total, device()) / world_size()
    stop_at_nan(training, mean, share)
    rate = recipe.optimizer.learning_rate * factor
    return {"loss": mean, "learning_rate": rate, "grad_norm": norm or 0.0, **figures}


def micro_batches(training: Training, share: Share) -> Iterator[Batch]:
    """The share cut into micro-batches."""
    samples, size = share.samples(), training.engine.micro_batch_size
    for start_index in range(0, len(samples), size):
        yield training.task.collate(samples[start_index : start_index + size])


def to_device(batch: Batch) -> Batch:
    """A batch where the model lies."""
    return {name: tensor.to(device(), non_blocking=True) for name, tensor in batch.items()}


def save_or_evaluate(training: Training, stops: bool) -> None:
    """What is due after a step: a checkpoint (always at the end and before stopping), evaluations."""
    run = training.recipe.run
    is_last = training.state.step == training.num_steps
    evaluates = not is_last and is_due(training, run.evaluate_every_samples)
    if is_last or stops or evaluates or is_due(training, run.checkpoint_every_samples):
        path = save_checkpoint(training.engine, training.task, training.state, training.run_dir, run.keep_checkpoints)
        if evaluates and rank() == 0:
            evaluate_checkpoint(training.recipe, training.run_dir, path)
        dist.barrier()


def stop_at_nan(training: Training, loss: float, share: Share) -> None:
    """Raise PairloomError when the loss is not a number: nothing after it is worth computing."""
    if math.isfinite(loss):
        return
    good = complete_checkpoints(training.run_dir)
    raise PairloomError(
        MESSAGE_OF_NAN.format(
            loss=loss,
            step=training.state.step + 1,
            uids=", ".join(share.uids[:8]) + (" ..." if len(share.uids) > 8 else ""),
            checkpoint=good[-1] if good else "none",
        )
    )


def advance(training: Training) -> TrainState:
    """The state after one more step."""
    state, size = training.state, training.recipe.batch.global_batch_size
    return TrainState(state.step + 1, state.samples_seen + size, world_size(), state.zero_stage)


def is_due(training: Training, every_samples: int | None) -> bool:
    """True for the step that reaches a multiple of `every_samples`."""
    if every_samples is None:
        return False
    seen = training.state.samples_seen
    return seen // every_samples > (seen - training.recipe.batch.global_batch_size) // every_samples


@dataclass(frozen=True)
class TimedShare:
    """A share, and the part of the time since the last one that was spent waiting for it."""

    value: Share
    wait_fraction: float


def timed(source: Iterator[Share]) -> Iterator[TimedShare]:
    """Measure how long each share is waited for."""
    last = time.monotonic()
    iterator = iter(source)
    while True:
        asked = time.monotonic()
        share = next(iterator, None)
        if share is None:
            return
        now = time.monotonic()
        yield TimedShare(share, round((now - asked) / max(1e-9, now - last), 4))
        last = now


def one_rank_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0, then on the others, who find done what it writes."""
    if rank() == 0:
        result = work()
        dist.barrier()
        return result
    dist.barrier()
    return work()


@dataclass
class StopSignal:
    """Notices SIGTERM (preemption) and SIGINT, so that the step in hand is finished and saved."""

    received: bool = field(default=False)

    def __post_init__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # not so in a worker of Ray Train
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def main(path: str) -> int:
    """Entry point of one rank; errors are left for the launcher to show."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pairloom").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    quiet_libraries()
    try:
        calm_threads()
        start_process_group()
        train(parse_recipe(json.loads(Path(path).read_text()), TrainRecipe, path))
    except PairloomError as error:
        write_error(error)
        return 2 if isinstance(error, UserError) else 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def quiet_libraries() -> None:
    """What libraries say to their own developers does not belong between the lines of a run."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def write_error(error: PairloomError) -> None:
    """One line into the file that the launcher named, or to stderr without a launcher."""
    message = " ".join(str(error).split())
    path = os.environ.get("PAIRLOOM_ERROR_FILE")
    if path is None:
        sys.stderr.write(f"pairloom: {message}\n")
    else:
        Path(path).write_text(json.dumps({"message": message, "is_user_error": isinstance(error, UserError)}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
