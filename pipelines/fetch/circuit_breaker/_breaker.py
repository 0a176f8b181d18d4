"""The circuit breaker itself: the package's docstring says when it opens and closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from pairloom.pipelines.fetch.circuit_breaker._deferred_failures import DeferredFailures
from pairloom.pipelines.fetch.circuit_breaker._failure_window import FailureWindow
from pairloom.pipelines.fetch.circuit_breaker._name_probe import NameProbe
from pairloom.pipelines.fetch.circuit_breaker._probes import NUM_PROBES, Probes
from pairloom.pipelines.fetch.scheduler import Job
from pairloom.pipelines.sources.urls import is_loopback
from pairloom.schemas.errors import SampleError, ShardError

MIN_FAILURES_AT_END = 5  # failures in a row at the end of a shard that open the circuit
EARLY_RELEASE = 500  # deferred rows without any response, after which they are reported before the end
DNS_FAILURE_S = 300.0  # until a name that did not resolve is looked up again
MAX_NAMES = 100_000
MIN_FAILURES = 20  # rows without any sign of a network, after which it is tested; fewer may all fail by chance


def no_origins() -> Sequence[str]:
    """The origins that other workers know, where there is no other worker."""
    return ()


class NetworkDownError(ShardError):
    """The network is down. The shard is not done; run the same command again when the network works."""


class CircuitBreaker:
    """Keep one per process: hosts that answered in one shard are probed in the next."""

    def __init__(self, patience_s: float, name_probe: Callable[[], NameProbe] = NameProbe) -> None:
        """`patience_s`: longest time in seconds that a shard waits for the network; 0: failures are always real."""
        self._patience_s = patience_s
        self._new_name_probe = name_probe
        self._probes = Probes()
        self._exchanges, self._first_exchanges = FailureWindow(), FailureWindow()  # all; the first with each host
        self._dns_failures: TTLCache[str, SampleError] = TTLCache(MAX_NAMES, DNS_FAILURE_S, time.monotonic)
        self.begin_shard()

    def begin_shard(
        self, all_may_fail: bool = True, answered_elsewhere: Callable[[], Sequence[str]] = no_origins
    ) -> None:
        """Forget the last shard.

        `all_may_fail`: a shard without any answer is no reason to test the network. `answered_elsewhere`: gives
        origins that answered other workers of this run.
        """
        self._deferred = DeferredFailures()
        self._has_evidence = all_may_fail  # something showed in this shard that the network works
        self._answered_elsewhere = answered_elsewhere
        self._name_probe = self._new_name_probe()
        self._known_origins: set[str] = set()
        self._num_failed_in_row = self._num_succeeded = 0
        self._outage_at = 0.0  # start of the last outage, time.monotonic()
        self._close()

    def _close(self) -> None:
        self.is_open = self._is_doubtful = False
        self._has_outage_evidence = False  # a probe was refused by a host, so that the network works
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

    def record_evidence(self) -> None:
        """Something showed that the network works: a response of any status, or a refused or reset connection."""
        self._has_evidence = True

    def defer(self, job: Job, outcome: object) -> bool:
        """Keep a row's outcome for now if a dead network could have caused it. Returns whether it was kept."""
        return self._deferred.defer(job, outcome)

    @property
    def num_deferred(self) -> int:
        """Failed rows that are not reported yet."""
        return len(self._deferred)

    def update(self, num_rows_left: int, is_idle: bool) -> list[tuple[int, SampleError]]:
        """Open the circuit if there are too many failures. Returns deferred rows whose failures are real."""
        if self.is_open:
            return []
        is_end = is_idle and len(self._deferred) == num_rows_left
        if self._patience_s and self._should_open(is_end):
            return []
        if is_end or (len(self._deferred) >= EARLY_RELEASE and not self._num_succeeded):
            if self._patience_s and not self._has_evidence and len(self._deferred) >= MIN_FAILURES:
                self._doubt()
                return []
            return self._deferred.release()
        return []

    def _doubt(self) -> None:
        """Open the circuit because nothing in this shard showed that the network works."""
        self.is_open = self._is_doubtful = True
        self._opened_at = time.monotonic()
        self._outage_at = 0.0  # all failures of the shard

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

    def due_probes(self) -> list[str]:
        """Origins to probe now; each must end in `record_probe`. Raises NetworkDownError after `patience_s`."""
        if not self.is_open or not self._probes.is_due:
            return []
        if self._is_doubtful and self._name_probe.has_answered:
            self._confirm()
            return []
        if self._probes.has_failed and time.monotonic() - self._opened_at > self._patience_s:
            if not self._is_doubtful and self._has_outage_evidence:
                self._confirm()
                return []
            raise NetworkDownError(self._error_text())
        if not self._is_doubtful:
            return self._probes.start_round()
        for origin in self._answered_elsewhere():
            self._probes.add_origin(origin)
        hosts = self._deferred.hosts()
        self._name_probe.start([host.name for host in hosts])
        return self._probes.start_round([host.origin for host in hosts[:NUM_PROBES]])

    def _confirm(self) -> None:
        """Close the circuit: the network works, so the failures are real."""
        self._close()
        self._has_evidence = True

    def _error_text(self) -> str:
        if self._is_doubtful:
            problem = f"none of {len(self._deferred)} images could be fetched (last: {self._deferred.last_error()})"
        else:
            problem = "none of the hosts that answered before has answered"
        return (
            f"the network is down: {problem} for {self._patience_s:g} s; check the network and run the same command "
            "again, or set ingest.fetch.outage_patience_s=0 to record such rows as failed"
        )

    def record_probe(self, has_answered: bool, refused_by: str | None = None) -> bool:
        """Count a probe. `refused_by`: the address that refused or reset the connection.

        Returns True when the network is back after an outage.
        """
        if refused_by is not None and not is_loopback(refused_by):  # this machine refuses without any network
            self._has_outage_evidence = True
        if not self._probes.record(has_answered or (self._is_doubtful and refused_by is not None)):
            return False
        was_down = self._probes.has_failed
        self._confirm()
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
