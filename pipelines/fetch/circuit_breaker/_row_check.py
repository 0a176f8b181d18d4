"""Detects a network that never worked during a shard; the windows detect one that fails on the way."""

from __future__ import annotations

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.schemas.drop_reason import TRANSIENT, DropReason
from pairloom.schemas.errors import SampleError

MIN_FETCHES = 20  # fewer may all fail although the network works
EARLY_FETCHES = 500  # if the first 500 fetches all failed, the rest of the shard is not tried


class RowCheck:
    """Counts the outcomes of one shard."""

    def __init__(self, num_rows: int) -> None:
        self._num_left = num_rows
        self._num_fetched = self._num_transient = 0  # without invalid URLs

    def record(self, outcome: SpooledBytes | SampleError) -> str | None:
        """Count one outcome. Returns an error text if all of enough fetches failed for a transient reason."""
        self._num_left -= 1
        if not isinstance(outcome, SampleError):
            self._num_fetched += 1
            return None
        if outcome.drop_reason != DropReason.INVALID_URL:
            self._num_fetched += 1
            self._num_transient += outcome.drop_reason in TRANSIENT
        is_enough = self._num_left == 0 and self._num_fetched >= MIN_FETCHES
        if self._num_transient < self._num_fetched or not (is_enough or self._num_fetched >= EARLY_FETCHES):
            return None
        return (
            f"none of {self._num_fetched} images could be fetched (last: {outcome}); "
            "check the network and run the same command again"
        )
