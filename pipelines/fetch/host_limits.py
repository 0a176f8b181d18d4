"""Request limits per host that hold over all workers together.

A worker requests slots once per shard for all its hosts, and again every few seconds for the hosts that it still
needs; never once per request. It gets a lease: slots that it may use until the lease expires. A host with a rate or a
Crawl-delay is leased to one worker at a time. One worker fetches the robots.txt of a host; the service shares it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pairloom.pipelines.fetch.robots import RobotsText, robots_lifetime_s
from pairloom.schemas.errors import SampleError

ROBOTS_FETCH_S = 20.0  # until another worker may fetch a robots.txt that did not arrive
MAX_HOSTS = 1_000_000
MAX_ANSWERED = 8  # hosts that answered, kept for workers to which nothing answers
MAX_ROBOTS_BYTES = 256 << 20  # all shared robots.txt together


@dataclass(frozen=True)
class LeaseTimes:
    """Times of the lease protocol, in seconds."""

    lease_s: float = 10.0
    """Lease lifetime without renewal."""
    max_hold_s: float = 2.0
    """Longest time that a worker holds a slot while other workers wait for one."""
    renew_s: float = 3.0
    """Time between two renewals; well below `lease_s`."""


class SlotRequest(NamedTuple):
    """A worker's request for slots of one origin."""

    wanted: int  # requests waiting or in flight; 0 gives the lease back
    in_flight: int = 0
    interval_s: float = 0.0  # between two requests, as far as the worker knows
    pause_s: float = 0.0  # remaining pause that the host demanded (Retry-After)
    needs_robots: bool = False


class SlotGrant(NamedTuple):
    """The slots that a worker gets for one origin."""

    slots: int
    wait_s: float = 0.0  # before the first request
    robots: RobotsText | None = None
    fetches_robots: bool = True  # if `robots` is None: this worker fetches it; False: another worker does


class HostLimits(Protocol):
    """Gives leases. One exchange at a time."""

    def request(self, requests: Mapping[str, SlotRequest]) -> None:
        """Start an exchange; requests are by origin."""

    def poll(self, timeout_s: float) -> Mapping[str, SlotGrant] | None:
        """The grants by origin; None if they have not arrived within `timeout_s`."""

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Share a robots.txt with the other workers."""

    def share_answer(self, origin: str) -> None:
        """Share that a host answered."""

    def answered_origins(self) -> Sequence[str]:
        """Hosts that answered any worker, the latest last."""

    @property
    def is_shared(self) -> bool:
        """Whether leases expire and must be renewed."""


class LocalLimits:
    """Limits of a single process, or of one of `num_workers` processes that cannot reach the service."""

    is_shared = False

    def __init__(self, per_host: int, num_workers: int = 1) -> None:
        self._slots = max(1, per_host // num_workers)
        self._grants: dict[str, SlotGrant] = {}

    def request(self, requests: Mapping[str, SlotRequest]) -> None:
        """Grant each origin the same number of slots."""
        self._grants = {origin: SlotGrant(self._slots) for origin in requests}

    def poll(self, timeout_s: float) -> Mapping[str, SlotGrant]:
        """The grants, without waiting."""
        return self._grants

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Do nothing: there is no other worker."""

    def share_answer(self, origin: str) -> None:
        """Do nothing: there is no other worker."""

    def answered_origins(self) -> Sequence[str]:
        """No hosts: there is no other worker."""
        return ()


@dataclass
class _Lease:
    wanted: int = 0
    slots: int = 0
    in_flight: int = 0
    expires_at: float = 0.0
    since: float = 0.0  # when the worker got its slots, or began to wait for them

    @property
    def held(self) -> int:
        return max(self.slots, self.in_flight)


@dataclass
class _SharedHost:
    leases: dict[str, _Lease] = field(default_factory=dict)  # by worker
    interval_s: float = 0.0
    not_before: float = 0.0
    robots: RobotsText | None = None
    robots_expire_at: float = 0.0
    robots_fetcher: str = ""  # the worker that fetches robots.txt
    robots_fetch_until: float = 0.0


class RateLimiterService:
    """Knows which worker holds which slots. The slots held of one host never exceed its limit."""

    def __init__(self, per_host: int, times: LeaseTimes | None = None) -> None:
        self._per_host = per_host
        self._times = times or LeaseTimes()
        self._hosts: OrderedDict[str, _SharedHost] = OrderedDict()
        self._num_robots_bytes = 0
        self._answered: OrderedDict[str, None] = OrderedDict()

    def exchange(self, worker: str, requests: Mapping[str, SlotRequest]) -> dict[str, SlotGrant]:
        """Renew, change or take back the leases of one worker."""
        now = time.monotonic()
        grants = {origin: self._grant(worker, origin, request, now) for origin, request in requests.items()}
        self._evict()
        return grants

    def share_robots(self, origin: str, text: RobotsText, interval_s: float) -> None:
        """Keep a robots.txt for all workers: a day, or a minute if it could not be fetched."""
        host = self._hosts.setdefault(origin, _SharedHost())
        self._num_robots_bytes += _size(text) - _size(host.robots)
        host.robots = text
        host.interval_s = max(host.interval_s, interval_s)
        host.robots_expire_at = time.monotonic() + robots_lifetime_s(text)
        self._evict()

    def share_answer(self, origin: str) -> None:
        """Keep a host that answered."""
        self._answered.pop(origin, None)
        self._answered[origin] = None
        if len(self._answered) > MAX_ANSWERED:
            self._answered.popitem(last=False)

    def answered_origins(self) -> list[str]:
        """Hosts that answered any worker, the latest last."""
        return list(self._answered)

    def _grant(self, worker: str, origin: str, request: SlotRequest, now: float) -> SlotGrant:
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _SharedHost()
        self._hosts.move_to_end(origin)
        host.interval_s = max(host.interval_s, request.interval_s)
        host.not_before = max(host.not_before, now + request.pause_s) if request.pause_s else host.not_before
        if not request.wanted:
            host.leases.pop(worker, None)
            return SlotGrant(0)
        lease = host.leases.get(worker)
        if lease is None:
            lease = host.leases[worker] = _Lease(since=now)
        lease.wanted, lease.in_flight = request.wanted, request.in_flight
        lease.expires_at = now + self._times.lease_s
        self._allocate(host, worker, lease, now)
        grant = SlotGrant(lease.slots, max(0.0, host.not_before - now))
        return grant if not request.needs_robots else _with_robots(grant, host, worker, now)

    def _allocate(self, host: _SharedHost, worker: str, lease: _Lease, now: float) -> None:
        """Set the slots of one worker's lease: its fair share, and slots that no other worker wants."""
        others = []
        for name, other in list(host.leases.items()):
            if other.expires_at < now:
                del host.leases[name]
            elif name != worker:
                others.append(other)
        limit = 1 if host.interval_s else self._per_host  # with an interval, one worker holds all slots
        fair = max(1, limit // (len(others) + 1))
        held = sum(other.held for other in others)
        owed = sum(max(0, min(other.wanted, fair) - other.held) for other in others)
        slots = min(lease.wanted, max(fair, limit - held - owed), max(0, limit - held))
        is_hold_over = lease.slots > 0 and now - lease.since > self._times.max_hold_s
        if is_hold_over and len(others) >= limit and any(not other.held for other in others):
            slots = 0
        if not lease.slots and _waits_behind_others(lease, others, limit - held):
            slots = 0
        if bool(slots) != bool(lease.slots):
            lease.since = now
        lease.slots = min(lease.wanted, self._per_host) if slots and host.interval_s else slots

    def _evict(self) -> None:
        while len(self._hosts) > MAX_HOSTS or self._num_robots_bytes > MAX_ROBOTS_BYTES:
            _, host = self._hosts.popitem(last=False)
            self._num_robots_bytes -= _size(host.robots)


def _with_robots(grant: SlotGrant, host: _SharedHost, worker: str, now: float) -> SlotGrant:
    """Add the robots.txt, or whether this worker fetches it."""
    if host.robots is not None and host.robots_expire_at > now:
        return grant._replace(robots=host.robots)
    if host.robots_fetch_until > now:
        return grant._replace(fetches_robots=host.robots_fetcher == worker)
    host.robots_fetcher, host.robots_fetch_until = worker, now + ROBOTS_FETCH_S
    return grant


def _waits_behind_others(lease: _Lease, others: list[_Lease], num_free: int) -> bool:
    """Whether the workers that have waited longer take all free slots."""
    return sum(not other.held and other.since < lease.since for other in others) >= num_free


def _size(text: RobotsText | None) -> int:
    return 0 if text is None or isinstance(text, SampleError) else len(text)
