"""Failures that are not reported yet, because the network may have caused them."""

from __future__ import annotations

import time

from pairloom.pipelines.fetch.scheduler import Host, Job
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError

MAX_OUTAGES = 3  # a row is fetched again after at most this many outages
_NETWORK_REASONS = frozenset(
    {DropReason.DNS_ERROR, DropReason.CONNECTION_ERROR, DropReason.TIMEOUT, DropReason.TRUNCATED_BODY}
)


class DeferredFailures:
    """Rows of one shard that failed for a reason that a dead network also gives."""

    def __init__(self) -> None:
        self._failures: list[tuple[float, Job, SampleError]] = []  # with the time.monotonic() of the failure

    def __len__(self) -> int:
        return len(self._failures)

    def defer(self, job: Job, outcome: object) -> bool:
        """Keep an outcome if a dead network could have caused it. Returns whether it was kept."""
        if not isinstance(outcome, SampleError) or outcome.drop_reason not in _NETWORK_REASONS:
            return False
        self._failures.append((time.monotonic(), job, outcome))
        return True

    def hosts(self) -> list[Host]:
        """The hosts of the failed rows, those that failed last first."""
        return list(dict.fromkeys(job.host for _, job, _ in reversed(self._failures)))

    def last_error(self) -> SampleError | None:
        """The latest failure."""
        return self._failures[-1][2] if self._failures else None

    def release(self) -> list[tuple[int, SampleError]]:
        """Remove and return all failures as (row, error): they were real."""
        released = [(job.row, error) for _, job, error in self._failures]
        self._failures = []
        return released

    def take_since(self, outage_at: float) -> list[Job]:
        """Remove and return the jobs that failed during the outage, ready for a new first attempt."""
        failures, self._failures = self._failures, []
        jobs = []
        for failure in failures:
            failed_at, job, _ = failure
            if failed_at < outage_at or job.num_outages >= MAX_OUTAGES:
                self._failures.append(failure)
                continue
            job.num_outages += 1
            job.num_failures = 0
            jobs.append(job)
        return jobs
