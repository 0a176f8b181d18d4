"""Failures that are not told yet, for they may turn out to be the network's own."""

from __future__ import annotations

import time

from pairloom.pipelines.fetch.scheduler import Job
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError

MAX_OUTAGES = 3  # that a row is fetched again after
_OF_THE_NETWORK = frozenset(
    {DropReason.DNS_ERROR, DropReason.CONNECTION_ERROR, DropReason.TIMEOUT, DropReason.TRUNCATED_BODY}
)


class HeldFailures:
    """Rows of one shard that ended as a dead network would let them end."""

    def __init__(self) -> None:
        self._held: list[tuple[float, Job, SampleError]] = []

    def __len__(self) -> int:
        return len(self._held)

    def takes(self, job: Job, outcome: object) -> bool:
        """Keep an outcome where it is such a failure."""
        if not isinstance(outcome, SampleError) or outcome.drop_reason not in _OF_THE_NETWORK:
            return False
        self._held.append((time.monotonic(), job, outcome))
        return True

    def release(self) -> list[tuple[int, SampleError]]:
        """Rows with their failures, which were real."""
        released = [(job.row, error) for _, job, error in self._held]
        self._held = []
        return released

    def take_since(self, began_at: float) -> list[Job]:
        """Jobs that failed in an outage, as if they had not been tried."""
        held, self._held = self._held, []
        again = []
        for failure in held:
            failed_at, job, _ = failure
            if failed_at < began_at or job.num_outages >= MAX_OUTAGES:
                self._held.append(failure)
                continue
            job.num_outages += 1
            job.num_failures = 0
            again.append(job)
        return again
