"""Which request starts next: origins take turns, each with its limit, its pauses and its robots.txt."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from pairloom.pipelines.fetch.robots import Rules
from pairloom.pipelines.sources.urls import host_name_of, origin_of
from pairloom.schemas.errors import SampleError

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0


@dataclass(eq=False, slots=True)
class Host:
    """One origin (`https://example.org`) while its rows are fetched."""

    origin: str
    name: str
    slots: int  # requests that may be in flight
    waiting: deque[Job] = field(default_factory=deque)
    num_in_flight: int = 0
    interval_s: float = 0.0  # between the starts of two requests
    paused_until: float = 0.0  # time.monotonic()
    rules: Rules | None = None  # None: not known yet
    is_asking_rules: bool = False
    is_rules_elsewhere: bool = False  # another worker asks
    is_listed: bool = False  # in the queue's turn
    is_leased: bool = False  # slots of a shared limit
    num_lost: int = 0  # exchanges in a row that ended without an answer
    given_up: SampleError | None = None  # why nothing more is asked of it

    def forget_failures(self) -> None:
        """As if nothing had gone wrong with it: the fault was the network's."""
        self.given_up, self.num_lost = None, 0
        if isinstance(self.rules, SampleError):
            self.rules = None


@dataclass(eq=False, slots=True)
class Job:
    """One row's URL on its way, the robots.txt of a host, or a probe whether the network is alive."""

    row: int
    first_url: str
    url: str  # after redirects
    host: Host
    seconds_left: float  # of this attempt, over all its redirects; waiting for a turn does not count
    num_redirects: int = 0
    num_failures: int = 0
    num_outages: int = 0  # of the network, after which it was tried again
    is_robots: bool = False
    is_probe: bool = False

    def start_over(self, timeout_s: float) -> None:
        """From the URL that the row names, with all of its time."""
        self.url, self.num_redirects, self.seconds_left = self.first_url, 0, timeout_s

    def backoff_s(self) -> float:
        """Doubling waits with a jitter that is a function of the URL and the attempt."""
        digest = hashlib.blake2b(f"{self.num_failures}\0{self.first_url}".encode(), digest_size=4).digest()
        jitter = int.from_bytes(digest, "big") / 2**32
        return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self.num_failures - 1)) * (0.5 + jitter)


class HostQueue:
    """Jobs waiting for their turn. Not thread-safe: it belongs to one event loop."""

    def __init__(self, per_host: int, interval_s: float = 0.0) -> None:
        self._per_host = per_host
        self._interval_s = interval_s
        self.hosts: dict[str, Host] = {}
        self.unleased: list[Host] = []  # new ones; emptied by who leases their slots
        self._turn: deque[Host] = deque()
        self._urgent: deque[Job] = deque()  # robots.txt: a whole host waits for it
        self._later: list[tuple[float, int, Job | Host]] = []  # heap
        self._serial = count()

    def host_of(self, url: str) -> Host:
        """The host that a clean URL belongs to."""
        origin = origin_of(url)
        host = self.hosts.get(origin)
        if host is None:
            host = self.hosts[origin] = Host(origin, host_name_of(origin), self._per_host, interval_s=self._interval_s)
            self.unleased.append(host)
        return host

    def add(self, job: Job, delay_s: float = 0.0) -> None:
        """Queue a job, now or later."""
        if delay_s > 0:
            self._wake_later(delay_s, job)
        elif job.is_robots:
            self._urgent.append(job)
        else:
            job.host.waiting.append(job)
            self._list(job.host)

    def pause(self, host: Host, seconds: float) -> None:
        """Ask nothing of a host for a while."""
        host.paused_until = max(host.paused_until, time.monotonic() + seconds)
        self._wake_later(seconds, host)

    def _wake_later(self, seconds: float, sleeper: Job | Host) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serial), sleeper))

    def _list(self, host: Host) -> None:
        """Give a host its turn where it has work and may do it."""
        if host.is_listed or not host.waiting or host.is_asking_rules or host.num_in_flight >= host.slots:
            return
        if not host.paused_until or host.paused_until <= time.monotonic():
            host.is_listed = True
            self._turn.append(host)

    def take(self) -> Job | None:
        """The next job that may start, or None. Its host counts it until `release`."""
        self._wake()
        if self._urgent:
            job = self._urgent.popleft()
            job.host.num_in_flight += 1
            return job
        while self._turn:
            host = self._turn.popleft()
            host.is_listed = False
            if host.is_asking_rules or not host.waiting or host.num_in_flight >= host.slots:
                continue
            if host.paused_until and host.paused_until > time.monotonic():
                continue
            job = host.waiting.popleft()
            host.num_in_flight += 1
            self._list(host)
            return job
        return None

    def release(self, host: Host) -> None:
        """A job of this host is no longer in flight."""
        host.num_in_flight -= 1
        self._list(host)

    def rules_are_known(self, host: Host) -> None:
        """Let a host go on that waited for its robots.txt."""
        host.is_asking_rules = host.is_rules_elsewhere = False
        self._list(host)

    def set_slots(self, host: Host, slots: int) -> None:
        """Change how many requests a host may have in flight."""
        host.slots = slots
        self._list(host)

    def put_back(self, job: Job) -> None:
        """Undo a `take`: the job is the next of its host."""
        job.host.num_in_flight -= 1
        job.host.waiting.appendleft(job)
        self._list(job.host)

    def drain(self, host: Host) -> Iterator[Job]:
        """Take all waiting jobs of a host off the queue."""
        while host.waiting:
            yield host.waiting.popleft()

    def _wake(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, sleeper = heapq.heappop(self._later)
            if isinstance(sleeper, Host):
                self._list(sleeper)
            else:
                self.add(sleeper)

    def seconds_to_wake(self) -> float | None:
        """How long until something that sleeps is due; None where nothing sleeps."""
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
