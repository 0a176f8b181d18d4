"""The consequence of a response: the row ends, follows a redirect, is tried again, or its host is blocked."""

from __future__ import annotations

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker
from pairloom.pipelines.fetch.lease_client import LeaseClient
from pairloom.pipelines.fetch.politeness import CrawlPolicy
from pairloom.pipelines.fetch.scheduler import Host, HostQueue, Job
from pairloom.pipelines.fetch.transfer import Response
from pairloom.pipelines.sources.urls import redirect_target, requested_url
from pairloom.schemas.drop_reason import TRANSIENT, DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 30.0  # a host that demands a longer pause gets no further request of this shard
MAX_INCOMPLETE = 12  # incomplete responses in a row, after which a host is blocked for this shard

Outcome = SpooledBytes | SampleError


class ResponseHandler:
    """Handles the responses of one shard; `outcomes` collects the rows that ended."""

    def __init__(
        self, recipe: FetchRecipe, queue: HostQueue, policy: CrawlPolicy, breaker: CircuitBreaker, leases: LeaseClient
    ) -> None:
        self._recipe = recipe
        self._queue = queue
        self._policy = policy
        self._breaker = breaker
        self._leases = leases
        self.outcomes: list[tuple[int, Outcome]] = []

    def handle(self, job: Job, response: Response) -> None:
        """Decide how a job continues, and free its slot."""
        host = job.host
        if response.status or response.is_incomplete:  # not if a private address was refused here
            self._breaker.record_exchange(host.origin, response.is_incomplete)
        if response.status or response.refused_by:
            self._breaker.record_evidence()
        if response.status:
            self._leases.share_answer(host)
        host.num_incomplete = host.num_incomplete + 1 if response.is_incomplete else 0
        if response.location is not None:
            self._redirect(job, response.location)
        elif response.error is None or not self._will_retry(job, response):
            if response.error is not None and response.is_incomplete:
                self._block_if_dead(host, response.error)
            if job.is_robots:
                error = response.error if response.is_transient else None
                if job.hedge is None or job.hedge.settles(error is not None):
                    self._store_rules(host, response)
                elif response.body is not None:
                    response.body.close()
            else:
                empty = SampleError(DropReason.NOT_AN_IMAGE, "empty body")
                self.end(job, response.body or response.error or empty)
        self._queue.release(host)

    def end(self, job: Job, outcome: Outcome) -> None:
        """End a job: a robots.txt that was lost in redirects counts as absent."""
        if job.hedge is not None and not job.hedge.settles(_is_transient(outcome)):
            if not isinstance(outcome, SampleError):
                outcome.close()
            return
        if job.is_robots:
            if isinstance(outcome, SampleError):
                self._store_rules(job.host, Response(error=outcome, status=404))
        elif not self._breaker.defer(job, outcome):
            self.outcomes.append((job.row, outcome))

    def end_all(self, host: Host, error: SampleError) -> None:
        """End all waiting jobs of a host."""
        for job in self._queue.drain(host):
            self.end(job, error)

    def start_over(self, job: Job, delay_s: float = 0.0) -> None:
        """Queue another attempt from the row's own URL."""
        job.start_over(self._recipe.timeout_s)
        job.hedge = None
        if not job.is_robots:
            job.host = self._queue.host_of(job.url)
        self._queue.add(job, delay_s)

    def _redirect(self, job: Job, location: str) -> None:
        """Queue the target of a redirect; a robots.txt still belongs to the host that redirected."""
        target = redirect_target(job.url, location)
        job.num_redirects += 1
        if target is None or job.num_redirects > MAX_REDIRECTS:
            reason = DropReason.INVALID_URL if target is None else DropReason.TOO_MANY_REDIRECTS
            self.end(job, SampleError(reason, f"redirect to {location[:200]}"))
        elif job.seconds_left <= 0:
            self.end(job, SampleError(DropReason.TIMEOUT, "redirects took too long"))
        else:
            job.url = requested_url(target)
            if not job.is_robots:
                job.host = self._queue.host_of(target)
            self._queue.add(job)

    def _will_retry(self, job: Job, response: Response) -> bool:
        """Queue another attempt after a transient failure; a Retry-After pauses the host."""
        if not response.is_transient:
            return False
        job.num_failures += 1
        delay_s = job.backoff_s()
        if response.retry_after_s is not None:
            delay_s = max(delay_s, response.retry_after_s)
            self._pause(job, response, response.retry_after_s)
        if job.num_failures > self._recipe.retries or delay_s > MAX_RETRY_AFTER_S:
            return False
        if response.error is not None and response.error.drop_reason == DropReason.DNS_ERROR:
            self._queue.pause(job.host, delay_s)  # one look-up at a time for all rows of the host
        self.start_over(job, delay_s)
        return True

    def _pause(self, job: Job, response: Response, retry_after_s: float) -> None:
        self._queue.pause(job.host, min(retry_after_s, MAX_RETRY_AFTER_S))
        if retry_after_s > MAX_RETRY_AFTER_S and response.error is not None and not job.is_robots:
            text = f"{response.error}; Retry-After: {retry_after_s:g} s"
            self._block(job.host, SampleError(response.error.drop_reason, text))

    def _block_if_dead(self, host: Host, error: SampleError) -> None:
        """All attempts of a job failed: block a name that does not resolve and a host that never answers."""
        if error.drop_reason == DropReason.DNS_ERROR:
            self._breaker.record_dns_failure(host.name, error)
            self._block(host, error)
        elif host.num_incomplete >= MAX_INCOMPLETE:
            text = f"{error}; {host.num_incomplete} requests in a row got no response"
            self._block(host, SampleError(error.drop_reason, text))

    def _block(self, host: Host, error: SampleError) -> None:
        """End all rows of a host, also those that come later."""
        host.blocked_by = error
        self.end_all(host, error)

    def _store_rules(self, host: Host, response: Response) -> None:
        text = self._policy.store_rules(host, response)
        if not response.is_incomplete:  # else this worker's network may be the cause
            self._leases.share_robots(host, text)
        self._queue.resume_after_robots(host)


def _is_transient(outcome: Outcome) -> bool:
    return isinstance(outcome, SampleError) and outcome.drop_reason in TRANSIENT
