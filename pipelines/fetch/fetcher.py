"""Fetch many URLs at once: one event loop in one thread over curl's multi interface.

Hundreds of requests are in flight over connections that stay open (HTTP/2 where the server speaks it); connections,
names and TLS sessions are kept for the next shard of the same process. Every URL ends as a body or as a SampleError.

Manners: robots.txt once an origin and before each request, redirects included; its Crawl-delay and Request-rate;
X-Robots-Tag before the body; `per_host` requests at once over all workers (host_limits.py); 429 and 503 pause the host
for as long as it asks. Safety: only http(s); the address that a name resolved to is checked at every connect; size and
time are capped; a network that is down ends no row (outage.py). Proxies of the environment are not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import pycurl

from pairloom.pipelines.engine.spooled_bytes import Body
from pairloom.pipelines.fetch.circuit_breaker import Circuit
from pairloom.pipelines.fetch.deferred_failures import HeldFailures
from pairloom.pipelines.fetch.event_loop import CurlLoop
from pairloom.pipelines.fetch.host_limits import HostLimits, LocalLimits
from pairloom.pipelines.fetch.lease_client import Leases
from pairloom.pipelines.fetch.politeness import Manners
from pairloom.pipelines.fetch.robots import MAX_ROBOTS_BYTES
from pairloom.pipelines.fetch.scheduler import Host, HostQueue, Job
from pairloom.pipelines.fetch.transfer import Answer, Transfer
from pairloom.pipelines.sources.urls import clean_url, redirect_target
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe

MAX_REDIRECTS = 5
PATIENCE_S = 30.0  # a host that asks to wait longer is left for a later run
NO_ROOM_WAIT_S = 0.01  # until the decoders are asked again whether there is room
LOST_HOST = 12  # exchanges without an answer in a row, after which a host is given up for this shard
LOST_SHARD = 500  # rows without any answer, after which the caller hears of them before the end

Outcome = Body | SampleError


def always() -> bool:
    """The `has_room` of a caller that takes everything at once."""
    return True


class Fetcher:
    """The event loop with its open connections; keep one a process and use it from one thread."""

    def __init__(self, recipe: FetchRecipe) -> None:
        self._recipe = recipe
        self._interval_s = 1 / recipe.requests_per_second_per_host if recipe.requests_per_second_per_host else 0.0
        self._manners = Manners(recipe)
        self._circuit = Circuit(recipe.outage_patience_s)
        self._idle: list[Transfer] = []
        self._active: dict[Transfer, Job] = {}
        self._outcomes: list[tuple[int, Outcome]] = []
        self._held = HeldFailures()
        self._loop = CurlLoop(2 * recipe.concurrency, recipe.first_byte_timeout_s)

    def fetch(
        self,
        requests: Sequence[tuple[int, str | None]],
        has_room: Callable[[], bool] = always,
        limits: HostLimits | None = None,
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Fetch `(row, url)` pairs; yields (row, body or error) as they end, one for each.

        The caller owns and closes the bodies. No request starts while `has_room()` is false; those in flight go on.
        Without `limits` this is the only process that asks. Raises NetworkDownError when the network stays down.
        """
        self._begin(requests, limits or LocalLimits(self._recipe.per_host))
        num_left = len(requests)
        try:
            while num_left:
                ended = self._outcomes
                self._outcomes = []
                num_left -= len(ended)
                yield from ended
                if num_left:
                    self._advance(has_room, num_left)
        finally:
            self._abandon()
            self._leases.end()

    def _begin(self, requests: Sequence[tuple[int, str | None]], limits: HostLimits) -> None:
        self._queue = HostQueue(self._recipe.per_host, self._interval_s)
        self._leases = Leases(limits, self._queue, self._manners.robots)
        self._outcomes, self._held = [], HeldFailures()
        for row, text in requests:
            url = clean_url(text)
            if url is None:
                self._outcomes.append((row, SampleError(DropReason.INVALID_URL, "not an http(s) URL")))
            else:
                self._queue.add(Job(row, url, url, self._queue.host_of(url), self._recipe.timeout_s))
        self._leases.begin()
        self._circuit.begin()
        self._free_at = time.monotonic()  # when last something was done for a host that needs no slow asking

    def _advance(self, has_room: Callable[[], bool], num_left: int) -> None:
        """Start what may start, then wait for something to end."""
        is_end = len(self._held) == num_left and not self._active
        if is_end and not self._circuit.trip(True) and not self._circuit.is_open:
            self._outcomes += self._held.release()  # the network works: what failed has failed
            return
        self._circuit.trip(False)
        if len(self._held) >= LOST_SHARD and not self._circuit.num_answers and not self._circuit.is_open:
            self._outcomes += self._held.release()
        if self._circuit.is_open:
            self._start_probes()
        self._wait(self._circuit.is_open or self._start_jobs(has_room))

    def _start_jobs(self, has_room: Callable[[], bool]) -> bool:
        """Start what may start; False when only room for more was missing."""
        while len(self._active) < self._recipe.concurrency:
            if not has_room():
                return False
            job = self._queue.take()
            if job is None:
                return True
            if self._may_start(job):
                self._start(job)
        return True

    def _start_probes(self) -> None:
        """Ask hosts that answered before whether the network is alive."""
        for origin in self._circuit.probes():
            url = f"{origin}/robots.txt"
            job = Job(-1, url, url, Host(origin, "", 1), self._recipe.connect_timeout_s, is_probe=True)
            job.host.num_in_flight = 1
            self._run(Transfer(self._recipe, is_probe=True), job)

    def _may_start(self, job: Job) -> bool:
        """Whether a job goes on now; it ends where it must not, and waits where its host's robots.txt is not known."""
        if not self._manners.knows_rules(job):
            self._ask_rules(job)
            return False
        refusal = self._manners.refusal(job)
        if refusal is None:
            return True
        self._end(job, refusal)
        self._queue.release(job.host)
        return False

    def _ask_rules(self, job: Job) -> None:
        """Fetch robots.txt first; the job and all others of its host wait for it."""
        host = job.host
        host.is_asking_rules = True
        self._queue.put_back(job)
        url = f"{host.origin}/robots.txt"
        self._queue.add(Job(-1, url, url, host, self._recipe.timeout_s, is_robots=True))

    def _start(self, job: Job) -> None:
        if not job.host.interval_s:
            self._free_at = time.monotonic()
        elif not job.is_robots:
            self._queue.pause(job.host, job.host.interval_s)
        self._run(self._idle.pop() if self._idle else Transfer(self._recipe), job)

    def _run(self, transfer: Transfer, job: Job) -> None:
        is_text = job.is_robots or job.is_probe
        max_bytes = MAX_ROBOTS_BYTES if is_text else self._recipe.max_bytes
        transfer.start(job.url, job.seconds_left, max_bytes, is_text)
        self._active[transfer] = job
        self._loop.add(transfer)

    def _wait(self, has_room: bool) -> None:
        """Sleep until a transfer, a sleeping job, a lease or a probe is due."""
        waits = [1.0, self._queue.seconds_to_wake(), self._leases.tend()]
        waits.append(None if has_room else NO_ROOM_WAIT_S)
        if self._circuit.is_open:
            waits = [1.0, self._circuit.seconds_to_probe()]
        timeout_s = 0.0 if self._outcomes else min(wait for wait in waits if wait is not None)
        for transfer, code, message in self._loop.wait(timeout_s):
            self._finish(transfer, code, message)
        if not has_room or self._circuit.is_open:
            self._free_at = time.monotonic()
        elif time.monotonic() - self._free_at > self._recipe.host_patience_s:
            self._leave_slow_hosts()

    def _finish(self, transfer: Transfer, code: int, message: str) -> None:
        job = self._active.pop(transfer)
        host = job.host
        answer = transfer.finish(code, message)
        if job.is_probe:
            if answer.body is not None:
                answer.body.close()
            if self._circuit.note_probe(answer.status > 0 and not answer.is_lost):
                self._fetch_held_again()
            return
        job.seconds_left -= time.monotonic() - transfer.started_at
        self._idle.append(transfer)
        if answer.status or answer.is_lost:  # not where we refused the address ourselves
            self._circuit.note(host.origin, answer.is_lost)
        host.num_lost = host.num_lost + 1 if answer.is_lost else 0
        if answer.location is not None:
            self._redirect(job, answer.location)
        elif answer.error is None or not self._will_retry(job, answer):
            if answer.error is not None and answer.is_lost:
                self._note_lost(host, answer.error)
            if job.is_robots:
                self._learn_rules(host, answer)
            else:
                self._end(job, answer.body or answer.error or SampleError(DropReason.NOT_AN_IMAGE, "empty body"))
        self._queue.release(host)

    def _redirect(self, job: Job, location: str) -> None:
        """Send a job where its answer points; robots.txt itself may move to another host."""
        target = redirect_target(job.url, location)
        job.num_redirects += 1
        if target is None or job.num_redirects > MAX_REDIRECTS:
            reason = DropReason.INVALID_URL if target is None else DropReason.TOO_MANY_REDIRECTS
            self._end(job, SampleError(reason, f"redirect to {location[:200]}"))
        elif job.seconds_left <= 0:
            self._end(job, SampleError(DropReason.TIMEOUT, "redirects took too long"))
        else:
            job.url = target
            if not job.is_robots:
                job.host = self._queue.host_of(target)
            self._queue.add(job)

    def _will_retry(self, job: Job, answer: Answer) -> bool:
        """Queue another attempt where it may heal; a host that asks for time gets it."""
        if not answer.may_heal:
            return False
        job.num_failures += 1
        delay_s = job.backoff_s()
        if answer.retry_after_s is not None:
            delay_s = max(delay_s, answer.retry_after_s)
            self._queue.pause(job.host, min(answer.retry_after_s, PATIENCE_S))
            if answer.retry_after_s > PATIENCE_S and answer.error is not None and not job.is_robots:
                self._give_up(job.host, SampleError(answer.error.drop_reason, f"{answer.error}; the host asks to wait"))
        if job.num_failures > self._recipe.retries or delay_s > PATIENCE_S:
            return False
        if answer.error is not None and answer.error.drop_reason == DropReason.DNS_ERROR:
            self._queue.pause(job.host, delay_s)  # one look-up at a time for all its rows
        self._start_over(job, delay_s)
        return True

    def _start_over(self, job: Job, delay_s: float = 0.0) -> None:
        job.start_over(self._recipe.timeout_s)
        if not job.is_robots:
            job.host = self._queue.host_of(job.url)
        self._queue.add(job, delay_s)

    def _note_lost(self, host: Host, error: SampleError) -> None:
        """All attempts of a job failed: a name that does not resolve or a host that never answers is given up."""
        if error.drop_reason == DropReason.DNS_ERROR:
            self._manners.lose_name(host, error)
            self._give_up(host, error)
        elif host.num_lost >= LOST_HOST:
            self._give_up(host, SampleError(error.drop_reason, f"{error}; {host.num_lost} in a row had no answer"))

    def _give_up(self, host: Host, error: SampleError) -> None:
        """End all that waits for a host, and all that will come."""
        host.given_up = error
        for job in self._queue.drain(host):
            self._end(job, error)

    def _leave_slow_hosts(self) -> None:
        """Nothing else is left to do: end what waits for hosts that must be asked slowly."""
        for host in list(self._queue.hosts.values()):
            if host.interval_s or not host.slots or host.is_rules_elsewhere:
                for job in self._queue.drain(host):
                    text = f"{host.origin} is asked slowly; no turn within {self._recipe.host_patience_s:g} s"
                    self._end(job, SampleError(DropReason.HTTP_RATE_LIMITED, text))

    def _learn_rules(self, host: Host, answer: Answer) -> None:
        text = self._manners.learn_rules(host, answer)
        if not answer.is_lost:  # which may be our network's fault
            self._leases.share_robots(host, text)
        self._queue.rules_are_known(host)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if job.is_robots:
            if isinstance(outcome, SampleError):
                self._learn_rules(job.host, Answer(error=outcome, status=404))  # lost in redirects: there is none
        elif not self._held.takes(job, outcome):
            self._outcomes.append((job.row, outcome))

    def _fetch_held_again(self) -> None:
        """The network is back: forget what it made us believe, and queue again what failed meanwhile."""
        self._manners.forget_failures()
        for host in self._queue.hosts.values():
            host.forget_failures()
        for job in self._held.take_since(self._circuit.bad_since):
            self._start_over(job)

    def _abandon(self) -> None:
        """Stop what is still in flight: the caller went away."""
        for transfer, job in list(self._active.items()):
            self._loop.remove(transfer)
            transfer.finish(pycurl.E_ABORTED_BY_CALLBACK, "")
            if not job.is_probe:
                self._idle.append(transfer)
        self._active.clear()
        for _, outcome in self._outcomes:
            if not isinstance(outcome, SampleError):
                outcome.close()
