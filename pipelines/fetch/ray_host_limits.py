"""Host limits over all workers of a Ray cluster: ledgers in small actors, each with its part of the hosts.

The driver of an ingest holds them (`shared_host_limits`); workers find them by name. Where they cannot be reached, a
worker goes on with its part of the limit, so that all together still keep it.
"""

from __future__ import annotations

import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from pairloom.pipelines.fetch.host_limits import Grant, HostLedger, HostLimits, LocalLimits, Wish
from pairloom.pipelines.fetch.robots import RobotsText

ACTOR_NAME = "pairloom-hosts"
CPUS_PER_ACTOR = 256  # workers that one actor serves with a small part of a core
ANSWER_S = 5.0  # until an actor counts as gone


@contextmanager
def shared_host_limits(per_host: int) -> Iterator[None]:
    """Keep one limit a host over all workers for the time of the `with`."""
    num_actors = 1 + int(_num_cpus() / CPUS_PER_ACTOR)
    actor_class = ray.remote(num_cpus=0)(HostLedger)
    actors = [
        actor_class.options(name=f"{ACTOR_NAME}-{index}-of-{num_actors}", get_if_exists=True).remote(per_host)
        for index in range(num_actors)
    ]
    try:
        yield
    finally:
        for actor in actors:
            ray.kill(actor)


def find_host_limits(per_host: int) -> HostLimits:
    """The limits that hold here: those of the cluster, or those of a process that is alone."""
    if not ray.is_initialized():
        return LocalLimits(per_host)
    num_cpus = _num_cpus()
    num_actors = 1 + int(num_cpus / CPUS_PER_ACTOR)
    local = LocalLimits(per_host, max(1, int(num_cpus)))
    try:
        actors = [ray.get_actor(f"{ACTOR_NAME}-{index}-of-{num_actors}") for index in range(num_actors)]
    except (ValueError, RayError):  # ValueError: there is no actor of that name
        return local
    return SharedLimits(actors, local)


def _num_cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 1))


class SharedLimits:
    """One worker's side of the ledgers."""

    def __init__(self, actors: list[Any], local: LocalLimits) -> None:
        self._actors = actors
        self._local = local
        self._worker = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._wishes: Mapping[str, Wish] = {}
        self._pending: list[Any] = []
        self._asked_at = 0.0
        self._is_lost = False

    @property
    def is_shared(self) -> bool:
        """False once an actor did not answer."""
        return not self._is_lost

    def ask(self, wishes: Mapping[str, Wish]) -> None:
        """Send each actor the wishes for its hosts."""
        self._wishes, self._pending, self._asked_at = wishes, [], time.monotonic()
        if self._is_lost:
            return
        parts: list[dict[str, Wish]] = [{} for _ in self._actors]
        for origin, wish in wishes.items():
            parts[self._part(origin)][origin] = wish
        calls = zip(self._actors, parts, strict=True)
        self._pending = [actor.exchange.remote(self._worker, part) for actor, part in calls if part]

    def answer(self, timeout_s: float) -> Mapping[str, Grant] | None:
        """Grants, or None while they are on their way; where an actor is gone, the part of one worker of many."""
        if not self._is_lost and self._pending:
            ready, waiting = ray.wait(self._pending, num_returns=len(self._pending), timeout=timeout_s)
            if waiting and time.monotonic() - self._asked_at < ANSWER_S:
                return None
            try:
                parts = [] if waiting else ray.get(ready)
                self._is_lost = bool(waiting)
            except RayError:
                self._is_lost = True
        if self._is_lost:
            self._local.ask(self._wishes)
            return self._local.answer(0)
        return {origin: grant for part in parts for origin, grant in part.items()} if self._pending else {}

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Fire and forget."""
        if not self._is_lost:
            self._actors[self._part(origin)].share_robots.remote(origin, text, interval_s)

    def _part(self, origin: str) -> int:
        return zlib.crc32(origin.encode()) % len(self._actors)
