"""Run one step's shards on Ray: bounded in flight, retried, in the order of the items.

What is done already is the caller's to know (a file that exists): it passes only what is left. A failure of
one shard never stops the others; when all have been tried, the first failure is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipelines.progress import Progress
from schemas.errors import PairloomError, ShardError, StorageError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_ATTEMPTS = 3  # of a shard, after a storage error, a lost worker or a lost node
IN_FLIGHT_PER_CPU = 2  # the next shard's inputs are ready when a worker gets free


def run_shards(
    step: str,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    num_done: int = 0,
    num_cpus: float = 1.0,
) -> list[Result]:
    """Run `work(item)` for every item as Ray tasks; results in the order of the items.

    `num_done` shards were finished earlier (progress only). Raises the first UserError at once; a shard that
    fails NUM_ATTEMPTS times raises ShardError after the others have finished.
    """
    if not items:
        return []

    def run_one(item: Item) -> Result:  # Ray takes plain functions only, no functools.partial
        return work(item)

    remote = ray.remote(num_cpus=num_cpus, max_retries=NUM_ATTEMPTS - 1, retry_exceptions=[StorageError])(run_one)
    limit = max(2, int(ray.cluster_resources().get("CPU", 1) / num_cpus) * IN_FLIGHT_PER_CPU)
    return _drain(step, items, num_done, limit, lambda item, _: remote.remote(item))


def run_actors(
    step: str,
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    num_done: int = 0,
    num_gpus: float = 0.0,
) -> list[Result]:
    """Like `run_shards`, for work that loads a model: each actor calls `make_worker` once.

    One actor a GPU where there are GPUs, else one a CPU less one (at least one), so that Ray never waits for a
    CPU that an actor holds.
    """
    if not items:
        return []
    resources = ray.cluster_resources()
    num_actors = int(resources.get("GPU", 0)) if num_gpus else max(1, int(resources.get("CPU", 1)) - 1)
    num_actors = max(1, min(num_actors, len(items)))
    actor_class = ray.remote(num_cpus=0.5, num_gpus=num_gpus, max_restarts=2, max_task_retries=2)(_Worker)
    actors = [actor_class.remote(make_worker) for _ in range(num_actors)]
    try:
        return _drain(
            step,
            items,
            num_done,
            2 * num_actors,
            lambda item, index: actors[index % num_actors].run.remote(item),
        )
    finally:
        for actor in actors:
            ray.kill(actor)


class _Worker:
    """Holds what `make_worker` loaded."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make_worker()

    def run(self, item: Any) -> Any:
        return self._work(item)


def _drain(
    step: str,
    items: Sequence[Item],
    num_done: int,
    limit: int,
    submit: Callable[[Item, int], Any],
) -> list[Any]:
    """Keep `limit` calls in flight until every item has a result or a failure."""
    results: list[Any] = [None] * len(items)
    failures: list[PairloomError] = []
    in_flight: dict[Any, int] = {}
    next_index = 0
    with Progress(step, total=num_done + len(items), done=num_done) as progress:
        while in_flight or next_index < len(items):
            while next_index < len(items) and len(in_flight) < limit:
                in_flight[submit(items[next_index], next_index)] = next_index
                next_index += 1
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            for reference in ready:
                index = in_flight.pop(reference)
                try:
                    results[index] = ray.get(reference)
                except RayError as error:
                    failures.append(_as_pairloom_error(step, items[index], error))
                    if isinstance(failures[-1], UserError):
                        raise failures[-1] from error
                progress.advance()
    if failures:
        raise failures[0]
    return results


def _as_pairloom_error(step: str, item: object, error: RayError) -> PairloomError:
    """What a task raised, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, PairloomError):
        return cause
    text = " ".join(f"{type(cause).__name__}: {cause}".split())
    return ShardError(f"{step}: a shard did not finish ({text[-500:]}); run the same command again")
