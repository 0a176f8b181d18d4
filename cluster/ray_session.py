"""Starts Ray for the pipelines: a local Ray, or a connection to a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from pairloom.schemas.errors import InputError, PairloomError

logger = logging.getLogger("pairloom")

_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a task has one CPU; more threads slow other tasks
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",  # workers import nothing from the working folder
}
_WAITS = {
    "RAY_agent_register_timeout_ms": "120000",  # Ray's own 30 s are short on a busy machine
    "RAY_idle_worker_killing_time_threshold_ms": "30000",  # Ray's own 1 s ends workers between two steps
}
NUM_STARTS = 3  # of the local Ray; each waits 30 s for its node (fixed in ray 2.60)
OBJECT_STORE_BYTES = 256 << 20  # steps pass file names and small tables, never images


def start_ray(address: str | None = None) -> None:
    """Join the cluster at `address`, or start a local Ray; does nothing when Ray runs already.

    Raises InputError when the cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    for name, value in {**_WAITS, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}.items():
        os.environ.setdefault(name, value)
    if address is None:
        _start_local()
        return
    try:
        runtime_env = {"env_vars": _WORKER_ENVIRONMENT}
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env=runtime_env,
            job_config=_job_config(),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--ray-address {address}: cannot join the Ray cluster: {reason}") from error


def _start_local() -> None:
    """Start Ray on this machine, again where it does not come up in time. Raises PairloomError in one line."""
    for attempt in range(1, NUM_STARTS + 1):
        try:
            with _in_environment(_WORKER_ENVIRONMENT):
                ray.init(
                    address="local",  # never a cluster that happens to run on this machine
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    job_config=_job_config(),
                )
            return
        except Exception as error:  # Ray raises bare Exception for a node that does not come up
            ray.shutdown()
            reason = " ".join(str(error).split())[:200]
            if attempt == NUM_STARTS:
                raise PairloomError(
                    f"Ray does not start on this machine after {NUM_STARTS} attempts ({reason}); free memory and CPUs, "
                    "check that RAY_TMPDIR or /tmp is writable, and run the same command again; its logs are in "
                    f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs"
                ) from error
            logger.warning("Ray did not start (%s); attempt %d of %d", reason, attempt + 1, NUM_STARTS)


def _job_config() -> ray.job_config.JobConfig:
    """A job whose workers do not search the driver's working folder for modules (a user's `queue.py` lies there).

    Ray 2.60 appends the folder to the workers' `sys.path` unless the job is a client's (`ray/_private/worker.py`,
    `connect`); for other jobs that flag changes only the upload of a `working_dir`, which we never name.
    """
    return ray.job_config.JobConfig(_client_job=True)


@contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the processes started in the `with` block inherit.

    A `runtime_env` would do the same, but Ray then leaves its first workers unused.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def stop_ray() -> None:
    """Stop the local Ray after the pipelines; it holds close to a gigabyte."""
    if ray.is_initialized():
        ray.shutdown()
