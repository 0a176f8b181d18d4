"""The circuit breaker itself: the package's docstring says when it opens and closes."""

from __future__ import annotations

import time

from cachetools import TTLCache

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.fetch.circuit_breaker._deferred_failures import DeferredFailures
from pairloom.pipelines.fetch.circuit_breaker._failure_window import FailureWindow
from pairloom.pipelines.fetch.circuit_breaker._probes import Probes
from pairloom.pipelines.fetch.circuit_breaker._row_check import RowCheck
from pairloom.pipelines.fetch.scheduler import Job
from pairloom.schemas.errors import SampleError, ShardError

MIN_FAILURES_AT_END = 5  # failures in a row at the end of a shard that open the circuit
EARLY_RELEASE = 500  # deferred rows without any response, after which they are reported before the end
DNS_FAILURE_S = 300.0  # until a name that did not resolve is looked up again
MAX_NAMES = 100_000


class NetworkDownError(ShardError):
    """The network is down. The shard is not done; run the same command again when the network works."""


class CircuitBreaker:
    """Keep one per process: hosts that answered in one shard are probed in the next."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s`: longest time in seconds that a shard waits for the network."""
        self._patience_s = patience_s
        self._probes = Probes()
        self._exchanges, self._first_exchanges = FailureWindow(), FailureWindow()  # all; the first with each host
        self._dns_failures: TTLCache[str, SampleError] = TTLCache(MAX_NAMES, DNS_FAILURE_S, time.monotonic)
        self.begin_shard(0)

    def begin_shard(self, num_rows: int, all_may_fail: bool = True) -> None:
        """Forget the last shard. `all_may_fail`: a shard without any image is no sign of a dead network."""
        self._deferred = DeferredFailures()
        self._row_check = None if all_may_fail else RowCheck(num_rows)
        self._known_origins: set[str] = set()
        self._num_failed_in_row = self._num_succeeded = 0
        self._outage_at = 0.0  # start of the last outage, time.monotonic()
        self._close()

    def _close(self) -> None:
        self.is_open = False
        self._opened_at = 0.0
        self._num_failed_in_row = 0
        self._exchanges.clear()
        self._first_exchanges.clear()
        self._probes.reset()

    def record_exchange(self, origin: str, has_failed: bool) -> None:
        """Count an exchange; it failed if no complete response arrived."""
        self._exchanges.record(has_failed)
        if origin not in self._known_origins:
            self._known_origins.add(origin)
            self._first_exchanges.record(has_failed)
        if has_failed:
            self._num_failed_in_row += 1
            return
        self._num_failed_in_row = 0
        self._num_succeeded += 1
        self._probes.add_origin(origin)

    def defer(self, job: Job, outcome: object) -> bool:
        """Keep a row's outcome for now if a dead network could have caused it. Returns whether it was kept."""
        return self._deferred.defer(job, outcome)

    def update(self, num_rows_left: int, is_idle: bool) -> list[tuple[int, SampleError]]:
        """Open the circuit if there are too many failures. Returns deferred rows whose failures are real."""
        if self.is_open:
            return []
        is_end = is_idle and len(self._deferred) == num_rows_left
        if self._should_open(is_end):
            return []
        if is_end or (len(self._deferred) >= EARLY_RELEASE and not self._num_succeeded):
            return self._deferred.release()
        return []

    def _should_open(self, is_end: bool) -> bool:
        if not self._probes.has_origins:
            return False
        windows = [window for window in (self._exchanges, self._first_exchanges) if window.has_jumped()]
        if not windows and not (is_end and self._num_failed_in_row >= MIN_FAILURES_AT_END):
            return False
        self.is_open = True
        self._opened_at = time.monotonic()
        self._outage_at = min(window.started_at for window in windows) if windows else self._exchanges.started_at
        return True

    def check_outcome(self, outcome: SpooledBytes | SampleError) -> None:
        """Count a reported outcome. Raises NetworkDownError if no row of the shard could be fetched."""
        problem = self._row_check.record(outcome) if self._row_check is not None else None
        if problem is not None:
            raise NetworkDownError(problem)

    def due_probes(self) -> list[str]:
        """Origins to probe now; each must end in `record_probe`. Raises NetworkDownError after `patience_s`."""
        if not self.is_open or not self._probes.is_due:
            return []
        if self._probes.has_failed and time.monotonic() - self._opened_at > self._patience_s:
            raise NetworkDownError(
                f"the network is down: none of the hosts that answered before has answered for "
                f"{self._patience_s:g} s; check the network and run the same command again"
            )
        return self._probes.start_round()

    def record_probe(self, has_answered: bool) -> bool:
        """Count a probe. Returns True when the network is back after an outage."""
        if not self._probes.record(has_answered):
            return False
        was_down = self._probes.has_failed
        self._close()
        if was_down:
            self._dns_failures.clear()
        return was_down

    def take_outage_jobs(self) -> list[Job]:
        """Jobs that failed during the outage, to be fetched again."""
        return self._deferred.take_since(self._outage_at)

    def seconds_to_probe(self) -> float:
        """Seconds until `due_probes` may return something."""
        return self._probes.seconds_to_next()

    def dns_failure(self, name: str) -> SampleError | None:
        """The error of a name that did not resolve within the last minutes."""
        return self._dns_failures.get(name)

    def record_dns_failure(self, name: str, error: SampleError) -> None:
        """Remember that a name does not resolve, so that the next URL needs no look-up."""
        self._dns_failures[name] = error
