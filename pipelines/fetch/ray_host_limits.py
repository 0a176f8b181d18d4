"""Host limits over all workers of a Ray cluster: rate limiter services in small actors, each for a part of the hosts.

The driver of an ingest starts the actors (`shared_host_limits`); workers find them by name. A worker that cannot reach
them uses its share of the limit, so that all workers together still keep the limit.
"""

from __future__ import annotations

import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from pairloom.pipelines.fetch.host_limits import HostLimits, LocalLimits, RateLimiterService, SlotGrant, SlotRequest
from pairloom.pipelines.fetch.robots import RobotsText

ACTOR_NAME = "pairloom-hosts"
CPUS_PER_ACTOR = 256  # that many workers need a small part of a core in the actor
TIMEOUT_S = 5.0  # until an actor counts as dead


@contextmanager
def shared_host_limits(per_host: int) -> Iterator[None]:
    """Within the `with`, the limit per host holds over all workers of the cluster."""
    num_actors = 1 + int(_num_cpus() / CPUS_PER_ACTOR)
    actor_class = ray.remote(num_cpus=0)(RateLimiterService)
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
    """The shared limits of this cluster, or local limits if no service runs."""
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
    """One worker's client of the rate limiter services."""

    def __init__(self, actors: Sequence[Any], local: LocalLimits) -> None:
        self.actors = tuple(actors)
        self._local = local
        self._worker = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._requests: Mapping[str, SlotRequest] = {}
        self._pending: list[Any] = []
        self._requested_at = 0.0
        self._is_dead = False

    @property
    def is_shared(self) -> bool:
        """False after an actor did not answer."""
        return not self._is_dead

    def request(self, requests: Mapping[str, SlotRequest]) -> None:
        """Send each actor the requests for its hosts."""
        self._requests, self._pending, self._requested_at = requests, [], time.monotonic()
        if self._is_dead:
            return
        by_actor: list[dict[str, SlotRequest]] = [{} for _ in self.actors]
        for origin, request in requests.items():
            by_actor[self._actor_index(origin)][origin] = request
        calls = zip(self.actors, by_actor, strict=True)
        self._pending = [actor.exchange.remote(self._worker, part) for actor, part in calls if part]

    def poll(self, timeout_s: float) -> Mapping[str, SlotGrant] | None:
        """The grants; None while they are pending. If an actor is dead: this worker's share of the limit."""
        if not self._is_dead and self._pending:
            ready, waiting = ray.wait(self._pending, num_returns=len(self._pending), timeout=timeout_s)
            if waiting and time.monotonic() - self._requested_at < TIMEOUT_S:
                return None
            try:
                grants = [] if waiting else ray.get(ready)
                self._is_dead = bool(waiting)
            except RayError:
                self._is_dead = True
        if self._is_dead:
            self._local.request(self._requests)
            return self._local.poll(0)
        return {origin: grant for part in grants for origin, grant in part.items()} if self._pending else {}

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Send a robots.txt to its actor, without waiting for an answer."""
        if not self._is_dead:
            self.actors[self._actor_index(origin)].share_robots.remote(origin, text, interval_s)

    def share_answer(self, origin: str) -> None:
        """Send a host that answered to the first actor, without waiting for an answer."""
        if not self._is_dead:
            self.actors[0].share_answer.remote(origin)

    def answered_origins(self) -> Sequence[str]:
        """Hosts that answered any worker of this run, the latest last."""
        if self._is_dead:
            return ()
        try:
            origins: list[str] = ray.get(self.actors[0].answered_origins.remote(), timeout=TIMEOUT_S)
        except (RayError, TimeoutError):
            return ()
        return origins

    def _actor_index(self, origin: str) -> int:
        return zlib.crc32(origin.encode()) % len(self.actors)
