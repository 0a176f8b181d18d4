"""The training loop of every task. Begin reading at `train`.

Started as one process per rank with torch's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT):

    python -m pairloom.trainers.train RECIPE.json
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

from pairloom.schemas.errors import PairloomError, RecipeError, UserError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.checkpoints.async_writer import AsyncWriter
from pairloom.trainers.checkpoints.checkpoint import TrainState, complete_checkpoints, load_checkpoint, newest_state
from pairloom.trainers.checkpoints.run_folder import (
    RunFolder,
    clean_run,
    evaluate_checkpoint,
    finish_run,
    open_run,
    share_folder,
)
from pairloom.trainers.data.dataset import Dataset, identity_of, open_dataset
from pairloom.trainers.data.loader import Loader, Share, shares
from pairloom.trainers.data.sample_order import Order, Stream, check_world_size
from pairloom.trainers.data.wait_time import measure_wait
from pairloom.trainers.deepspeed_engine.engine import Engine, device, limit_threads, start_engine, start_process_group
from pairloom.trainers.error_file import write_error
from pairloom.trainers.evaluate.run import check_data
from pairloom.trainers.metrics import Metrics
from pairloom.trainers.open_clip.load import convert_folder, is_open_clip
from pairloom.trainers.optimizers.schedule import rate_factor
from pairloom.trainers.ranks import any_rank, join_lists, local_rank, rank, sum_over_ranks, world_size
from pairloom.trainers.stop_signal import StopSignal
from pairloom.trainers.task import Batch, Task
from pairloom.trainers.tasks.tokenizer import prepare_tokenizer

logger = logging.getLogger("pairloom.train")
MESSAGE_OF_NAN = "{what} at step {step}; samples: {uids}; last good checkpoint: {checkpoint}"
NUM_UIDS_SHOWN = 8


@dataclass
class Training:
    """Objects that all steps of a run use."""

    recipe: TrainRecipe
    run: RunFolder
    task: Task
    engine: Engine
    loader: Loader
    writer: AsyncWriter
    state: TrainState

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return count_steps(self.recipe)


def train(recipe: TrainRecipe) -> None:
    """Train from the newest checkpoint to the end, then evaluate and export. Raises UserError, StorageError."""
    run = open_run(recipe)
    if is_trained(recipe, run.path):
        finish_run(recipe, run)
        return
    training = start(with_local_model(at_path(recipe, run), run), run)
    stop = StopSignal()
    metrics = Metrics(run.path, recipe, training.state)
    try:
        for share in measure_wait(
            shares(training.loader, training.state.step, training.num_steps, recipe.data.num_workers)
        ):
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
    finish_run(recipe, run)


def at_path(recipe: TrainRecipe, run: RunFolder) -> TrainRecipe:
    """The recipe with the local run folder as run.dir, for code that writes files there."""
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": str(run.path)})})


def with_local_model(recipe: TrainRecipe, run: RunFolder) -> TrainRecipe:
    """The recipe with init_from converted to a Hugging Face folder where it names open_clip's files."""
    if recipe.init_from is None or not is_open_clip(recipe.init_from):
        return recipe
    folder = run.path / "init_from"
    if rank() == 0 and not (folder / "config.json").exists():
        convert_folder(recipe.init_from, folder)
    share_folder(run, folder.name)
    return recipe.model_copy(update={"init_from": str(folder)})


def count_steps(recipe: TrainRecipe) -> int:
    """Steps of the whole run; an incomplete last batch is not trained."""
    return recipe.run.total_samples // recipe.batch.global_batch_size


def is_trained(recipe: TrainRecipe, run_dir: Path) -> bool:
    """True when the run has already reached its end. Raises RecipeError where run.total_samples is too small."""
    total, batch = recipe.run.total_samples, recipe.batch.global_batch_size
    if total < batch:
        raise RecipeError(f"run.total_samples {total} is less than one step of batch.global_batch_size {batch}")
    state = newest_state(run_dir)
    if state is None:
        return False
    if state.samples_seen > total:
        raise RecipeError(f"run.total_samples {total} is less than the {state.samples_seen} that {run_dir} has seen")
    if state.step == count_steps(recipe):
        logger.info("%s: trained to its end already (step %d)", run_dir, state.step)
    return state.step == count_steps(recipe)


def start(recipe: TrainRecipe, run: RunFolder) -> Training:
    """Open the data, build task and engine, and load the newest checkpoint. Raises UserError."""
    check_world_size(recipe.data.num_lanes, world_size())
    if local_rank() == 0:
        open_datasets(recipe)  # writes missing indexes
    dist.barrier()
    datasets = open_datasets(recipe)
    if rank() == 0:
        check_data(recipe.evaluate)
        prepare_tokenizer(recipe, datasets, run.path)
    share_folder(run, "tokenizer")
    task: Task = recipe.task.build(recipe, prepare_tokenizer(recipe, datasets, run.path))
    engine = start_engine(task, recipe)
    clean_run(run)
    pairs = zip(recipe.data.train, datasets, strict=True)
    data = [identity_of(source, dataset) for source, dataset in pairs]
    state = TrainState(0, 0, world_size(), recipe.zero.stage, data)
    if (newest := newest_state(run.path)) is not None:
        load_checkpoint(engine, task, newest, state, run.path)
        state = replace(state, step=newest.step, samples_seen=newest.samples_seen)
        logger.info("%s: resumes after step %d", recipe.run.dir, state.step)
    loader = make_loader(recipe, datasets, task)
    writer = AsyncWriter(engine, task, run, recipe.run.keep_checkpoints)
    return Training(recipe, run, task, engine, loader, writer, state)


def open_datasets(recipe: TrainRecipe) -> list[Dataset]:
    """The data sets of the mixture. Raises InputError."""
    return [open_dataset(source, recipe.data.cache_gb << 30) for source in recipe.data.train]


def make_loader(recipe: TrainRecipe, datasets: Sequence[Dataset], task: Task) -> Loader:
    """This rank's samples by step."""
    seed = recipe.run.seed
    orders = [Order(dataset.shard_sizes, seed, index) for index, dataset in enumerate(datasets)]
    weights = [source.weight for source in recipe.data.train]
    stream = Stream(orders, weights, recipe.data.num_lanes, recipe.batch.global_batch_size)
    augment, num_patches = recipe.data.augment, recipe.model.num_patches
    return Loader(datasets, stream, task.preprocess, augment, seed, rank(), world_size(), num_patches, task.extra_views)


def train_step(training: Training, share: Share) -> dict[str, float]:
    """One optimizer step over this rank's share; returns the figures of the global step."""
    task, engine, recipe = training.task, training.engine, training.recipe
    first_slot = rank() * recipe.batch.global_batch_size // world_size()
    torch.manual_seed(recipe.run.seed * 1_000_003 + training.state.samples_seen + first_slot)
    factor = rate_factor(recipe.optimizer, recipe.run.total_samples, training.state.samples_seen)
    engine.set_rate_factor(factor)
    phase = task.phase_at(training.state.samples_seen, recipe.run.total_samples)
    task.begin_step(training.state.samples_seen, phase)
    batches = [to_device(batch) for batch in micro_batches(training, share)]
    result = task.take_step(engine, batches)
    task.end_step()
    own = (result.loss, len(share.replaced), checksum_of(share.uids), *result.terms.values())
    total_of_ranks, num_replaced, checksum, *terms = sum_over_ranks(*own)
    mean, norm = total_of_ranks / world_size(), result.gradient_norm
    if not math.isfinite(mean):
        raise_at_nan(training, f"the loss is {mean}", [] if math.isfinite(result.loss) else share.uids)
    if not math.isfinite(norm):
        raise_at_nan(training, f"the norm of the gradients is {norm}", share.uids)
    rate = recipe.optimizer.learning_rate * factor
    figures = {**result.figures, "grad_norm": norm, "num_replaced": num_replaced, "sample_checksum": checksum}
    figures |= {name: total / world_size() for name, total in zip(result.terms, terms, strict=True)}
    if len(task.phase_starts) > 1:
        figures["phase"] = phase
    if share.grids:
        figures["num_patches"] = share.pixels.shape[1]
    return {"loss": mean, "learning_rate": rate, **figures}


def checksum_of(uids: Sequence[str]) -> int:
    """Equal for equal sets of samples in any order; small enough that sums over ranks are exact."""
    return sum(zlib.crc32(uid.encode()) for uid in uids)


def micro_batches(training: Training, share: Share) -> Iterator[Batch]:
    """The share cut into micro-batches."""
    samples, size = share.samples(), training.engine.micro_batch_size
    for start_index in range(0, len(samples), size):
        yield training.task.collate(samples[start_index : start_index + size])


def to_device(batch: Batch) -> Batch:
    """The batch on the model's device."""
    return {name: tensor.to(device(), non_blocking=True) for name, tensor in batch.items()}


def save_or_evaluate(training: Training, stops: bool) -> None:
    """Save and evaluate when due after a step; always save at the end and before stopping.

    Waits for the files only where they are read now.
    """
    run, writer = training.recipe.run, training.writer
    is_last = training.state.step == training.num_steps
    evaluates = not is_last and is_due(training, run.evaluate_every_samples)
    if not (is_last or stops or evaluates or is_due(training, run.checkpoint_every_samples)):
        writer.poll()
        return
    path = writer.begin(training.state)
    if is_last or stops or evaluates:
        writer.finish()
    if evaluates:
        if rank() == 0:
            evaluate_checkpoint(training.recipe, training.run.path, path)
        dist.barrier()


def raise_at_nan(training: Training, what: str, own_uids: list[str]) -> None:
    """Raise PairloomError after a NaN or infinity, naming samples and the last good checkpoint. Every rank calls it."""
    training.writer.finish()
    uids = join_lists(own_uids)
    good = complete_checkpoints(training.run.path)
    shown = ", ".join(uids[:NUM_UIDS_SHOWN])
    if len(uids) > NUM_UIDS_SHOWN:
        shown += f" and {len(uids) - NUM_UIDS_SHOWN} more"
    checkpoint = good[-1] if good else "none"
    step = training.state.step + 1
    raise PairloomError(MESSAGE_OF_NAN.format(what=what, step=step, uids=shown, checkpoint=checkpoint))


def advance(training: Training) -> TrainState:
    """The state after one more step."""
    state, size = training.state, training.recipe.batch.global_batch_size
    return replace(state, step=state.step + 1, samples_seen=state.samples_seen + size)


def is_due(training: Training, every_samples: int | None) -> bool:
    """True for the step that reaches a multiple of `every_samples`."""
    if every_samples is None:
        return False
    seen = training.state.samples_seen
    return seen // every_samples > (seen - training.recipe.batch.global_batch_size) // every_samples


def main(path: str) -> int:
    """Entry point of one rank; errors are reported to the launcher. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pairloom").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    quiet_libraries()
    try:
        limit_threads()
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
    """Silence warnings of libraries that address their own developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
