"""Fetch many URLs at once: one event loop in one thread over curl's multi interface.

Hundreds of requests are in flight over connections that stay open (HTTP/2 if the server supports it). Connections,
names and TLS sessions are kept for the next shard of the same process. Each URL ends as a body or as a SampleError.

Politeness: robots.txt once per origin and before each request, redirects included; its Crawl-delay and Request-rate;
X-Robots-Tag before the body; `per_host` requests at once over all workers (host_limits.py); 429 and 503 pause the
host. Safety: only http(s); the resolved address is checked at every connection; size and time are limited; an outage of
the own network drops no row (circuit_breaker). Proxies of the environment are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker
from pairloom.pipelines.fetch.fetch_session import FetchSession
from pairloom.pipelines.fetch.host_limits import HostLimits, LeaseTimes, LocalLimits
from pairloom.pipelines.fetch.politeness import CrawlPolicy
from pairloom.pipelines.fetch.response_handler import Outcome
from pairloom.pipelines.fetch.transfer_pool import TransferPool
from pairloom.schemas.recipes.curate import FetchRecipe


def always() -> bool:
    """The `has_capacity` of a caller that takes all outcomes at once."""
    return True


class Fetcher:
    """State of a process that outlives a shard: connections, robots.txt rules, hosts that answer.

    Keep one per process and use it from one thread.
    """

    def __init__(self, recipe: FetchRecipe, lease_times: LeaseTimes | None = None) -> None:
        self._recipe = recipe
        self._lease_times = lease_times or LeaseTimes()
        self._breaker = CircuitBreaker(recipe.outage_patience_s)
        self._policy = CrawlPolicy(recipe, self._breaker)
        self._pool = TransferPool(recipe)

    def fetch(
        self,
        requests: Sequence[tuple[int, str | None]],
        has_capacity: Callable[[], bool] = always,
        limits: HostLimits | None = None,
        all_may_fail: bool = True,
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Fetch `(row, url)` pairs; yields (row, body or error) once per pair, in the order in which they end.

        The caller owns and closes the bodies. No request starts while `has_capacity()` is false. `limits`: the limits
        that hold over all workers; None: this process is the only one. `all_may_fail`: whether a shard without any
        answer is possible on a working network. Raises NetworkDownError.
        """
        limits = limits or LocalLimits(self._recipe.per_host)
        self._breaker.begin_shard(all_may_fail, limits.answered_origins)
        session = FetchSession(self._recipe, self._pool, self._policy, self._breaker, limits, self._lease_times)
        yield from session.run(requests, has_capacity)
