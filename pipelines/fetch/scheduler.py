"""Chooses the next request: hosts in round robin, each with its slots, its pauses and its robots.txt."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from pairloom.pipelines.fetch.robots import Rules
from pairloom.pipelines.sources.urls import host_name_of, origin_of
from pairloom.schemas.errors import SampleError

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 8.0


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
    is_fetching_robots: bool = False  # its rows wait for robots.txt
    is_robots_elsewhere: bool = False  # another worker fetches robots.txt
    is_ready: bool = False  # listed in the queue's round robin
    is_leased: bool = False  # has slots of a shared limit
    num_incomplete: int = 0  # exchanges in a row without a complete response
    blocked_by: SampleError | None = None  # the error that ends all its rows

    def forget_failures(self) -> None:
        """Reset failures that a network outage caused."""
        self.blocked_by, self.num_incomplete = None, 0
        if isinstance(self.rules, SampleError):
            self.rules = None


@dataclass(eq=False, slots=True)
class Hedge:
    """Attempts of one job that run at the same time; the first definite result counts, else the last failure."""

    num_left: int  # attempts without a result
    is_done: bool = False

    def settles(self, is_transient_failure: bool) -> bool:
        """Count a result. Returns whether it is the result of the job."""
        self.num_left -= 1
        if self.is_done or (is_transient_failure and self.num_left > 0):
            return False
        self.is_done = True
        return True


@dataclass(eq=False, slots=True)
class Job:
    """One request to make: the URL of a row, a robots.txt, or a probe of the network."""

    row: int
    first_url: str
    url: str  # after redirects
    host: Host
    seconds_left: float  # of this attempt over all its redirects; time in the queue does not count
    num_redirects: int = 0
    num_failures: int = 0
    num_outages: int = 0  # outages of the network after which the row was fetched again
    is_robots: bool = False
    is_probe: bool = False
    hedge: Hedge | None = None  # shared by attempts at the same time

    def hedged(self, retries: int, timeout_s: float) -> list[Job]:
        """All further attempts, to run beside the one in flight; none of them is retried."""
        num_more = retries - self.num_failures
        self.hedge = Hedge(1 + num_more)
        self.num_failures = retries
        jobs = [replace(self) for _ in range(num_more)]
        for job in jobs:
            job.start_over(timeout_s)
        return jobs

    def start_over(self, timeout_s: float) -> None:
        """Reset to the URL of the row and the whole timeout."""
        self.url, self.num_redirects, self.seconds_left = self.first_url, 0, timeout_s

    def backoff_s(self) -> float:
        """Exponential backoff in seconds. Its jitter is a function of the URL and the attempt."""
        digest = hashlib.blake2b(f"{self.num_failures}\0{self.first_url}".encode(), digest_size=4).digest()
        jitter = int.from_bytes(digest, "big") / 2**32
        return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self.num_failures - 1)) * (0.5 + jitter)


class HostQueue:
    """Waiting jobs by host. Not thread-safe: it belongs to one event loop."""

    def __init__(self, per_host: int, interval_s: float = 0.0) -> None:
        self._per_host = per_host
        self._interval_s = interval_s
        self.hosts: dict[str, Host] = {}
        self.unleased: list[Host] = []  # new hosts; the lease client empties this list
        self._ready: deque[Host] = deque()
        self._robots_jobs: deque[Job] = deque()  # first of all: a whole host waits for each
        self._delayed: list[tuple[float, int, Job | Host]] = []  # heap by time.monotonic()
        self._serial = count()

    def host_of(self, url: str) -> Host:
        """The host of a clean URL."""
        origin = origin_of(url)
        host = self.hosts.get(origin)
        if host is None:
            host = self.hosts[origin] = Host(origin, host_name_of(origin), self._per_host, interval_s=self._interval_s)
            self.unleased.append(host)
        return host

    def add(self, job: Job, delay_s: float = 0.0) -> None:
        """Queue a job, now or after a delay."""
        if delay_s > 0:
            self._delay(delay_s, job)
        elif job.is_robots:
            self._robots_jobs.append(job)
        else:
            job.host.waiting.append(job)
            self._mark_ready(job.host)

    def pause(self, host: Host, seconds: float) -> None:
        """Start no request to a host for so many seconds."""
        host.paused_until = max(host.paused_until, time.monotonic() + seconds)
        self._delay(seconds, host)

    def _delay(self, seconds: float, delayed: Job | Host) -> None:
        heapq.heappush(self._delayed, (time.monotonic() + seconds, next(self._serial), delayed))

    def _mark_ready(self, host: Host) -> None:
        """Put a host into the round robin if one of its jobs may start."""
        if host.is_ready or not host.waiting or host.is_fetching_robots or host.num_in_flight >= host.slots:
            return
        if not host.paused_until or host.paused_until <= time.monotonic():
            host.is_ready = True
            self._ready.append(host)

    def take(self) -> Job | None:
        """The next job that may start, or None. Its host counts it as in flight until `release`."""
        self._wake()
        if self._robots_jobs:
            job = self._robots_jobs.popleft()
            job.host.num_in_flight += 1
            return job
        while self._ready:
            host = self._ready.popleft()
            host.is_ready = False
            if host.is_fetching_robots or not host.waiting or host.num_in_flight >= host.slots:
                continue
            if host.paused_until and host.paused_until > time.monotonic():
                continue
            job = host.waiting.popleft()
            host.num_in_flight += 1
            self._mark_ready(host)
            return job
        return None

    def release(self, host: Host) -> None:
        """One job of this host is no longer in flight."""
        host.num_in_flight -= 1
        self._mark_ready(host)

    def resume_after_robots(self, host: Host) -> None:
        """The host's robots.txt is known, or this worker must fetch it: its jobs may start."""
        host.is_fetching_robots = host.is_robots_elsewhere = False
        self._mark_ready(host)

    def set_slots(self, host: Host, slots: int) -> None:
        """Set how many requests a host may have in flight."""
        host.slots = slots
        self._mark_ready(host)

    def put_back(self, job: Job) -> None:
        """Undo a `take`: the job is the next of its host."""
        job.host.num_in_flight -= 1
        job.host.waiting.appendleft(job)
        self._mark_ready(job.host)

    def drain(self, host: Host) -> Iterator[Job]:
        """Remove and yield all waiting jobs of a host."""
        while host.waiting:
            yield host.waiting.popleft()

    def _wake(self) -> None:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            _, _, delayed = heapq.heappop(self._delayed)
            if isinstance(delayed, Host):
                self._mark_ready(delayed)
            else:
                self.add(delayed)

    def seconds_to_wake(self) -> float | None:
        """Seconds until a delayed job or a paused host is due; None if there is none."""
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else None
