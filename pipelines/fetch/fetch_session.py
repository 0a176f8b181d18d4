"""The fetch of one shard: starts requests within all limits, waits, and reports rows as they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker
from pairloom.pipelines.fetch.host_limits import HostLimits, LeaseTimes
from pairloom.pipelines.fetch.lease_client import LeaseClient
from pairloom.pipelines.fetch.politeness import CrawlPolicy
from pairloom.pipelines.fetch.response_handler import Outcome, ResponseHandler
from pairloom.pipelines.fetch.scheduler import Host, HostQueue, Job
from pairloom.pipelines.fetch.transfer import Response
from pairloom.pipelines.fetch.transfer_pool import TransferPool
from pairloom.pipelines.sources.urls import clean_url, requested_url
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe

TAIL_ROWS, TAIL_SHARE = 16, 0.02  # the end of a shard: so many rows are left, or so large a share
HEDGE_AFTER = 0.25  # share of the first-byte timeout, after which a request near the end is hedged
CAPACITY_POLL_S = 0.01  # between two calls of `has_capacity`


class FetchSession:
    """Use once: call `run`."""

    def __init__(
        self, recipe: FetchRecipe, pool: TransferPool, policy: CrawlPolicy, breaker: CircuitBreaker,
        limits: HostLimits, times: LeaseTimes,
    ) -> None:  # fmt: skip
        self._recipe = recipe
        self._pool = pool
        self._policy = policy
        self._breaker = breaker
        rate = recipe.requests_per_second_per_host
        self._queue = HostQueue(recipe.per_host, 1 / rate if rate else 0.0)
        self._leases = LeaseClient(limits, self._queue, policy.robots, times)
        self._handler = ResponseHandler(recipe, self._queue, policy, breaker, self._leases)
        self._num_rows = 0
        self._busy_at = time.monotonic()  # last time that a host without a rate limit, or the caller, was the limit

    def run(
        self, requests: Sequence[tuple[int, str | None]], has_capacity: Callable[[], bool]
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Yield (row, outcome) once per request. Raises NetworkDownError."""
        self._add(requests)
        self._leases.begin()
        self._busy_at = time.monotonic()
        num_left = self._num_rows = len(requests)
        try:
            while num_left:
                ended = self._handler.outcomes
                self._handler.outcomes = []
                num_left -= len(ended)
                yield from ended
                if num_left:
                    self._advance(has_capacity, num_left)
        finally:
            self._abort()
            self._leases.end()

    def _add(self, requests: Sequence[tuple[int, str | None]]) -> None:
        for row, text in requests:
            url = clean_url(text)
            if url is None:
                error = SampleError(DropReason.INVALID_URL, "not an http(s) URL")
                self._handler.outcomes.append((row, error))
            else:
                url = requested_url(url)
                self._queue.add(Job(row, url, url, self._queue.host_of(url), self._recipe.timeout_s))

    def _advance(self, has_capacity: Callable[[], bool], num_left: int) -> None:
        """Start all requests that may start, then wait for an event."""
        self._handler.outcomes += self._breaker.update(num_left, is_idle=not self._pool.num_active)
        if self._breaker.is_open:
            self._start_probes()
            self._wait(True)
        else:
            self._hedge(num_left - self._breaker.num_deferred)
            self._wait(self._start_jobs(has_capacity))

    def _hedge(self, num_open: int) -> None:
        """Near the end of the shard, start the further attempts of silent requests now, not after their time-outs."""
        if num_open > max(TAIL_ROWS, self._num_rows * TAIL_SHARE):
            return
        for job in self._pool.silent_jobs(HEDGE_AFTER * self._recipe.first_byte_timeout_s):
            is_limited = job.host.interval_s or job.host.paused_until > time.monotonic() or job.is_probe
            if job.hedge is None and job.num_failures < self._recipe.retries and not is_limited:
                for further in job.hedged(self._recipe.retries, self._recipe.timeout_s):
                    if not further.is_robots:
                        further.host = self._queue.host_of(further.url)
                    self._queue.add(further)

    def _start_jobs(self, has_capacity: Callable[[], bool]) -> bool:
        """Start jobs up to the concurrency. Returns False if the caller had no capacity for more."""
        while self._pool.num_active < self._recipe.concurrency:
            if not has_capacity():
                return False
            job = self._queue.take()
            if job is None:
                return True
            if self._may_start(job):
                self._start(job)
        return True

    def _start_probes(self) -> None:
        for origin in self._breaker.due_probes():
            url = f"{origin}/robots.txt"
            host = Host(origin, "", 1, num_in_flight=1)
            self._pool.start(Job(-1, url, url, host, self._recipe.connect_timeout_s, is_probe=True))

    def _may_start(self, job: Job) -> bool:
        """Whether a job may be sent now; if not, it waits for robots.txt or ends with the reason."""
        if job.hedge is not None and job.hedge.is_done:
            self._queue.release(job.host)
            return False
        if not self._policy.has_rules(job):
            self._fetch_robots(job)
            return False
        refusal = self._policy.refusal(job)
        if refusal is None:
            return True
        self._handler.end(job, refusal)
        self._queue.release(job.host)
        return False

    def _fetch_robots(self, job: Job) -> None:
        """Queue the robots.txt of a host; the job and all others of the host wait for it."""
        host = job.host
        host.is_fetching_robots = True
        self._queue.put_back(job)
        url = f"{host.origin}/robots.txt"
        self._queue.add(Job(-1, url, url, host, self._recipe.timeout_s, is_robots=True))

    def _start(self, job: Job) -> None:
        if not job.host.interval_s:
            self._busy_at = time.monotonic()
        elif not job.is_robots:
            self._queue.pause(job.host, job.host.interval_s)
        self._pool.start(job)

    def _wait(self, has_capacity: bool) -> None:
        """Wait until a transfer ends, or a delayed job, a lease or a probe is due."""
        waits = [1.0, self._queue.seconds_to_wake(), self._leases.renew()]
        waits.append(None if has_capacity else CAPACITY_POLL_S)
        if self._breaker.is_open:
            waits = [1.0, self._breaker.seconds_to_probe()]
        timeout_s = 0.0 if self._handler.outcomes else min(wait for wait in waits if wait is not None)
        for job, response in self._pool.wait(timeout_s):
            if job.is_probe:
                self._finish_probe(response)
            else:
                self._handler.handle(job, response)
        if not has_capacity or self._breaker.is_open:
            self._busy_at = time.monotonic()
        elif time.monotonic() - self._busy_at > self._recipe.host_patience_s:
            self._drop_rate_limited()

    def _finish_probe(self, response: Response) -> None:
        """Count a probe. If the network is back, forget failures and queue the failed rows again."""
        if response.body is not None:
            response.body.close()
        has_answered = response.status > 0 and not response.is_incomplete
        if not self._breaker.record_probe(has_answered, response.refused_by):
            return
        self._policy.forget_failures()
        for host in self._queue.hosts.values():
            host.forget_failures()
        for job in self._breaker.take_outage_jobs():
            self._handler.start_over(job)

    def _drop_rate_limited(self) -> None:
        """Only rate-limited hosts are left, and `host_patience_s` is over: end their rows."""
        for host in list(self._queue.hosts.values()):
            if host.interval_s or not host.slots or host.is_robots_elsewhere:
                text = (
                    f"{host.origin} is rate-limited; no request could start within {self._recipe.host_patience_s:g} s"
                )
                self._handler.end_all(host, SampleError(DropReason.HTTP_RATE_LIMITED, text))

    def _abort(self) -> None:
        """Stop the requests in flight and close bodies that the caller has not taken."""
        self._pool.abort_all()
        for _, outcome in self._handler.outcomes:
            if not isinstance(outcome, SampleError):
                outcome.close()
