"""Run the shards of one step on Ray: a bounded number at once, with retries, results in the order of the items.

The caller passes only shards that are not done (their file does not exist). A failed shard never stops the others;
when all have been tried, the first failure is raised, or one error that names all bad files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from pairloom.pipelines.engine.counters import Collector, Counts, Report
from pairloom.pipelines.engine.progress import CountedProgress, Meter, Progress
from pairloom.schemas.data_set.manifest import ShardEntry
from pairloom.schemas.errors import BadFileError, PairloomError, ShardError, StorageError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_ATTEMPTS = 3  # per shard: after a storage error, a lost worker or a lost node
IN_FLIGHT_PER_CPU = 2  # the inputs of the next shard are ready when a worker becomes free
MAX_BAD_FILES = 20  # named in one error
MAX_REASON_CHARS = 500  # of an unforeseen error, in its message
REFRESH_S = 0.5  # between two updates of the progress


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

    remote = _as_task(run_one, num_cpus)
    progress = Progress(step, total=num_done + len(items), done=num_done)
    return _drain(progress, items, _in_flight(num_cpus), lambda item, _: remote.remote(item))


@dataclass(frozen=True)
class Counted:
    """Arguments of `run_counted_shards`."""

    num_done: int  # shards finished by earlier runs
    num_rows: int | None  # of all items; None: unknown
    metrics_url: str
    num_cpus: float = 1.0  # per shard


def run_counted_shards(
    step: str, work: Callable[[Item, Report], Result], items: Sequence[Item], counted: Counted
) -> list[Result]:
    """Like `run_shards`, for work that reports counts: to the terminal, `metrics_url` and Prometheus."""
    if not items:
        return []
    collector = ray.remote(num_cpus=0)(Collector).remote(step)

    def run_one(item: Item, index: int, collector: Any) -> Result:
        report = Report(collector, index)
        try:
            return work(item, report)
        finally:
            report.flush()

    def read_counts(timeout_s: float) -> Counts | None:
        """None if the collector does not answer: the counts are shown later."""
        try:
            counts: Counts = ray.get(collector.totals.remote(), timeout=timeout_s)
        except (GetTimeoutError, RayError):
            return None
        return counts

    remote = _as_task(run_one, counted.num_cpus)
    meter = Meter(counted.num_rows, counted.metrics_url, read_counts)
    progress = CountedProgress(step, counted.num_done + len(items), counted.num_done, meter)
    try:
        return _drain(
            progress, items, _in_flight(counted.num_cpus), lambda item, index: remote.remote(item, index, collector)
        )
    finally:
        ray.kill(collector)


def _as_task(run_one: Callable[..., Any], num_cpus: float) -> Any:
    return ray.remote(num_cpus=num_cpus, max_retries=NUM_ATTEMPTS - 1, retry_exceptions=[StorageError])(run_one)


def _in_flight(num_cpus: float) -> int:
    return max(2, int(ray.cluster_resources().get("CPU", 1) / num_cpus) * IN_FLIGHT_PER_CPU)


def run_actors(
    step: str,
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    num_done: int = 0,
    num_gpus: float = 0.0,
    shards_at_once: int = 1,
) -> list[Result]:
    """Like `run_shards`, for work that loads a model: each actor calls `make_worker` once.

    With `shards_at_once` > 1, several threads of an actor call its worker. One actor per GPU if `num_gpus` > 0;
    otherwise max(1, num_cpus - 1) actors, so that one CPU stays free for tasks.
    """
    if not items:
        return []
    resources = ray.cluster_resources()
    num_actors = int(resources.get("GPU", 0)) if num_gpus else max(1, int(resources.get("CPU", 1)) - 1)
    num_actors = max(1, min(num_actors, len(items)))
    actor_class = ray.remote(
        num_cpus=0.5, num_gpus=num_gpus, max_restarts=2, max_task_retries=2, max_concurrency=shards_at_once
    )(_Worker)
    actors = [actor_class.remote(make_worker) for _ in range(num_actors)]
    try:
        progress = Progress(step, total=num_done + len(items), done=num_done)
        limit = (shards_at_once + 1) * num_actors
        return _drain(progress, items, limit, lambda item, index: actors[index % num_actors].run.remote(item))
    finally:
        for actor in actors:
            ray.kill(actor)


class _Worker:
    """The actor: holds the worker that `make_worker` returned."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make_worker()

    def run(self, item: Any) -> Any:
        return self._work(item)


def _drain(
    progress: Progress,
    items: Sequence[Item],
    limit: int,
    submit: Callable[[Item, int], Any],
) -> list[Any]:
    """Keep `limit` calls in flight until every item has a result or a failure."""
    results: list[Any] = [None] * len(items)
    failures: list[PairloomError] = []
    in_flight: dict[Any, int] = {}
    next_index = 0
    with progress:
        while in_flight or next_index < len(items):
            while next_index < len(items) and len(in_flight) < limit:
                in_flight[submit(items[next_index], next_index)] = next_index
                next_index += 1
            ready, _ = ray.wait(list(in_flight), num_returns=1, timeout=REFRESH_S)
            progress.refresh()
            for reference in ready:
                index = in_flight.pop(reference)
                try:
                    results[index] = ray.get(reference)
                except RayError as error:
                    failures.append(_as_pairloom_error(progress.step, items[index], error))
                    if isinstance(failures[-1], UserError) and not isinstance(failures[-1], BadFileError):
                        raise failures[-1] from error
                progress.advance()
    if failures:
        raise _most_important(failures)
    return results


def _most_important(failures: Sequence[PairloomError]) -> PairloomError:
    """The first failure that is no bad file; or all bad files in one error."""
    others = [failure for failure in failures if not isinstance(failure, BadFileError)]
    messages = list(dict.fromkeys(map(str, failures)))
    if others or len(messages) == 1:
        return (others or failures)[0]
    more = f"; and {len(messages) - MAX_BAD_FILES} more" if len(messages) > MAX_BAD_FILES else ""
    return BadFileError(f"{len(messages)} files cannot be used: {'; '.join(messages[:MAX_BAD_FILES])}{more}")


def _as_pairloom_error(step: str, item: object, error: RayError) -> PairloomError:
    """The error that a task raised, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, PairloomError):
        return cause
    shard = f"shard {item.name}" if isinstance(item, ShardEntry) else "a shard"
    return ShardError(f"{step}: {shard} did not finish ({_in_one_line(cause)}); run the same command again")


def _in_one_line(error: BaseException) -> str:
    """Type and message of an error; of a traceback in its text, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if any(line.startswith("Traceback (most recent call last)") for line in lines) or "File " in str(error):
        return lines[-1][:MAX_REASON_CHARS]
    return f"{type(error).__name__}: {' '.join(lines)}"[:MAX_REASON_CHARS]
