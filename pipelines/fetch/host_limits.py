"""How many requests a worker may have in flight to a host, so that a limit holds over all workers together.

A worker asks once a shard for all its hosts, and again every few seconds for those it is not done with; never once a
request. What it gets is a lease: slots that it may fill until the lease ends. A host that must be asked slowly (a rate,
a Crawl-delay) is leased to one worker at a time. The robots.txt of a host is asked by one worker and handed to the
others.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pairloom.pipelines.fetch.robots import CACHE_S, FAILURE_CACHE_S, RobotsText
from pairloom.schemas.errors import SampleError

LEASE_S = 10.0  # a worker that is not heard of for so long has lost its slots
TURN_S = 2.0  # how long a worker keeps a scarce slot while others wait for one
ASKING_S = 20.0  # until another worker may ask for a robots.txt that has not come
MAX_HOSTS = 1_000_000
MAX_ROBOTS_BYTES = 256 << 20  # of all texts together


class Wish(NamedTuple):
    """What a worker says about one origin."""

    wanted: int  # requests waiting or in flight; 0 gives the lease back
    in_flight: int = 0
    interval_s: float = 0.0  # between requests, as far as the worker knows
    pause_s: float = 0.0  # that the host has asked for
    needs_robots: bool = False


class Grant(NamedTuple):
    """What a worker gets for one origin."""

    slots: int
    wait_s: float = 0.0  # before the first request
    robots: RobotsText | None = None
    asks_robots: bool = True  # where `robots` is None: whether this worker asks for it, or waits for another that does


class HostLimits(Protocol):
    """Where leases come from. Only one exchange is under way at a time."""

    def ask(self, wishes: Mapping[str, Wish]) -> None:
        """Begin an exchange."""

    def answer(self, timeout_s: float) -> Mapping[str, Grant] | None:
        """Grants for what was asked; None while there is no answer yet."""

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Hand a robots.txt to the other workers."""

    @property
    def is_shared(self) -> bool:
        """Whether leases run out and have to be renewed."""


class LocalLimits:
    """Limits of a process that is alone, or of one of `num_workers` that cannot hear of each other."""

    is_shared = False

    def __init__(self, per_host: int, num_workers: int = 1) -> None:
        self._slots = max(1, per_host // num_workers)
        self._grants: dict[str, Grant] = {}

    def ask(self, wishes: Mapping[str, Wish]) -> None:
        """Grant everyone the same."""
        self._grants = {origin: Grant(self._slots) for origin in wishes}

    def answer(self, timeout_s: float) -> Mapping[str, Grant]:
        """Always at once."""
        return self._grants

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """There is nobody else."""


@dataclass
class _Lease:
    wanted: int = 0
    slots: int = 0
    in_flight: int = 0
    ends_at: float = 0.0
    since: float = 0.0  # when it got its slots, or began to wait for them

    @property
    def held(self) -> int:
        return max(self.slots, self.in_flight)


@dataclass
class _SharedHost:
    leases: dict[str, _Lease] = field(default_factory=dict)
    interval_s: float = 0.0
    not_before: float = 0.0
    robots: RobotsText | None = None
    robots_until: float = 0.0
    asked_by: str = ""
    asked_until: float = 0.0


class HostLedger:
    """Who holds which slots. The sum of what is held never exceeds the limit of a host."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: OrderedDict[str, _SharedHost] = OrderedDict()
        self._num_robots_bytes = 0

    def exchange(self, worker: str, wishes: Mapping[str, Wish]) -> dict[str, Grant]:
        """Renew, change or give back the leases of one worker."""
        now = time.monotonic()
        grants = {origin: self._grant(worker, origin, wish, now) for origin, wish in wishes.items()}
        self._make_room()
        return grants

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Keep a robots.txt for all: a day, or a minute where it could not be had."""
        host = self._hosts.setdefault(origin, _SharedHost())
        self._num_robots_bytes += _size(text) - _size(host.robots)
        host.robots = text
        host.interval_s = max(host.interval_s, interval_s)
        lifetime_s = FAILURE_CACHE_S if isinstance(text, SampleError) else CACHE_S
        host.robots_until = time.monotonic() + lifetime_s
        self._make_room()

    def _grant(self, worker: str, origin: str, wish: Wish, now: float) -> Grant:
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _SharedHost()
        self._hosts.move_to_end(origin)
        host.interval_s = max(host.interval_s, wish.interval_s)
        host.not_before = max(host.not_before, now + wish.pause_s) if wish.pause_s else host.not_before
        if not wish.wanted:
            host.leases.pop(worker, None)
            return Grant(0)
        lease = host.leases.get(worker)
        if lease is None:
            lease = host.leases[worker] = _Lease(since=now)
        lease.wanted, lease.in_flight, lease.ends_at = wish.wanted, wish.in_flight, now + LEASE_S
        self._deal(host, worker, lease, now)
        grant = Grant(lease.slots, max(0.0, host.not_before - now))
        return grant if not wish.needs_robots else _with_robots(grant, host, worker, now)

    def _deal(self, host: _SharedHost, worker: str, lease: _Lease, now: float) -> None:
        """Set the slots of one worker's lease: a fair share, and what the others leave."""
        others = []
        for name, other in list(host.leases.items()):
            if other.ends_at < now:
                del host.leases[name]
            elif name != worker:
                others.append(other)
        limit = 1 if host.interval_s else self._per_host
        fair = max(1, limit // (len(others) + 1))
        held = sum(other.held for other in others)  # of one that must be asked slowly, all by one worker
        owed = sum(max(0, min(other.wanted, fair) - other.held) for other in others)
        slots = min(lease.wanted, max(fair, limit - held - owed), max(0, limit - held))
        has_had_turn = lease.slots > 0 and now - lease.since > TURN_S
        if has_had_turn and len(others) >= limit and any(not other.held for other in others):
            slots = 0
        if not lease.slots and _is_later(lease, others, limit - held):
            slots = 0
        if bool(slots) != bool(lease.slots):
            lease.since = now
        lease.slots = min(lease.wanted, self._per_host) if slots and host.interval_s else slots

    def _make_room(self) -> None:
        while len(self._hosts) > MAX_HOSTS or self._num_robots_bytes > MAX_ROBOTS_BYTES:
            _, host = self._hosts.popitem(last=False)
            self._num_robots_bytes -= _size(host.robots)


def _with_robots(grant: Grant, host: _SharedHost, worker: str, now: float) -> Grant:
    """Add the robots.txt, or who asks for it."""
    if host.robots is not None and host.robots_until > now:
        return grant._replace(robots=host.robots)
    if host.asked_until > now:
        return grant._replace(asks_robots=host.asked_by == worker)
    host.asked_by, host.asked_until = worker, now + ASKING_S
    return grant


def _is_later(lease: _Lease, others: list[_Lease], num_free: int) -> bool:
    """True when those who have waited longer take all that is free."""
    return sum(not other.held and other.since < lease.since for other in others) >= num_free


def _size(text: RobotsText | None) -> int:
    return len(text) if isinstance(text, bytes) else 0
