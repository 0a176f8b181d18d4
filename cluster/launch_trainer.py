"""Start the ranks of a training run: processes of this machine, or workers of a Ray cluster by Ray Train."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pairloom.schemas.errors import PairloomError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage
from pairloom.trainers.error_file import ERROR_FILE, error_file, raise_reported, write_error

POLL_S = 0.05
STOP_TIMEOUT_S = 300.0  # a rank saves a checkpoint before it stops
_PR_SET_PDEATHSIG = 1
RANK_SETTINGS = {
    "DS_ACCELERATOR": "cpu",  # without a GPU: silences DeepSpeed's search for one
    "OMP_WAIT_POLICY": "passive",  # threads that spin make small steps many times slower
    "TOKENIZERS_PARALLELISM": "false",
    "DS_IGNORE_CUDA_DETECTION": "1",
    "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed imports an optimizer that torch would prepare to compile: 2 s
}


def launch_trainer(
    recipe: TrainRecipe,
    num_processes: int | None = None,
    ray_address: str | None = None,
    threads: int | None = None,
) -> None:
    """Run a recipe to its end. Default: one rank per GPU, else one rank; `threads`: CPU threads per rank.

    Raises the error of a rank (UserError, PairloomError). On an interrupt the ranks save a checkpoint and stop; the
    same call resumes the run.
    """
    if ray_address is not None:
        _launch_on_ray(recipe, num_processes or 1, ray_address)
        return
    count = num_processes or _num_gpus() or 1
    with tempfile.TemporaryDirectory(prefix="pairloom-") as scratch:
        path = Path(scratch, "recipe.json")
        path.write_text(recipe.model_dump_json())
        ranks = _start(path, count, threads)
        try:
            with _termination_as_interrupt():
                _wait(ranks)
        except KeyboardInterrupt:
            _stop(ranks, signal.SIGTERM)
            raise
        finally:
            _stop(ranks, signal.SIGKILL)
        _raise_failure(ranks, Path(scratch))


def _start(recipe: Path, count: int, threads: int | None) -> list[subprocess.Popen[bytes]]:
    port = _free_port()
    command = [sys.executable, "-P", "-m", "pairloom.trainers.train", str(recipe)]
    return [
        subprocess.Popen(
            command,
            env=_rank_environment(index, count, port, threads, recipe.parent),
            start_new_session=True,  # Ctrl-C reaches this process only, which signals the ranks
            preexec_fn=_die_with_parent,
        )
        for index in range(count)
    ]


def _rank_environment(index: int, count: int, port: int, threads: int | None, scratch: Path) -> dict[str, str]:
    own = {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        ERROR_FILE: error_file(str(scratch), index),
    }
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    defaults = {} if _num_gpus() else RANK_SETTINGS
    return {**defaults, **os.environ, **own}


def _die_with_parent() -> None:
    """On Linux, the kernel kills a rank when the launcher exits for any reason, so that no rank writes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM (preemption by a scheduler) acts as Ctrl-C: the ranks save and stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all ranks have ended, or one has failed."""
    while any(process.poll() is None for process in ranks):
        if any(process.poll() not in (None, 0) for process in ranks):
            return
        time.sleep(POLL_S)


def _stop(ranks: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)
    for process in ranks:
        process.wait(STOP_TIMEOUT_S)


def _raise_failure(ranks: Sequence[subprocess.Popen[bytes]], scratch: Path) -> None:
    """Raise the first reported error, or one with the exit code of a rank that reported none."""
    raise_reported(str(scratch), len(ranks))
    for index, process in enumerate(ranks):
        if process.returncode:
            raise PairloomError(
                f"rank {index} of {len(ranks)} ended with exit code {process.returncode} (its last lines are above); "
                "run the same command to go on from the newest checkpoint"
            )


def _launch_on_ray(recipe: TrainRecipe, num_processes: int, address: str) -> None:
    """Run the ranks as workers of Ray Train; run.dir must be on storage that all nodes share."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pairloom.cluster.ray_session import start_ray

    start_ray(address)
    uses_gpu = ray.cluster_resources().get("GPU", 0) >= num_processes
    errors = storage.join(recipe.run.dir, f"errors-{uuid.uuid4().hex[:8]}")  # this machine's disk may not be shared
    with tempfile.TemporaryDirectory(prefix="pairloom-") as scratch:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"recipe": recipe.model_dump(mode="json"), "errors": errors},
            scaling_config=ScalingConfig(num_workers=num_processes, use_gpu=uses_gpu),
            torch_config=TorchConfig(backend="nccl" if uses_gpu else "gloo"),
            run_config=RunConfig(storage_path=scratch),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise_reported(errors, num_processes)
            raise PairloomError(f"Ray Train: {' '.join(str(error).split())[-600:]}") from error
        finally:
            storage.remove(errors)


def _ray_worker(config: dict[str, Any]) -> None:
    """One rank: Ray Train has started the process group."""
    from ray.train import get_context

    from pairloom.trainers.deepspeed_engine.engine import start_process_group
    from pairloom.trainers.train import train

    context = get_context()
    os.environ |= {
        **RANK_SETTINGS,
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        ERROR_FILE: error_file(config["errors"], context.get_world_rank()),
    }
    try:
        start_process_group()
        train(parse_recipe(config["recipe"], TrainRecipe, "recipe"))
    except PairloomError as error:
        write_error(error)
        raise


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
