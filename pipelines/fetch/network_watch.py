"""Tells a network that never worked in a shard from URLs that are dead; outage.py finds one that fails on the way."""

from __future__ import annotations

from pairloom.pipelines.engine.spooled_bytes import Body
from pairloom.schemas.drop_reason import TRANSIENT, DropReason
from pairloom.schemas.errors import SampleError, ShardError

FEWEST_FOR_DEAD_NETWORK = 20  # fetches; fewer may well all fail on a network that works
EARLY_DEAD_NETWORK = 500  # fetches, the first of a shard: when all failed, the others are not tried


class NetworkWatch:
    """Tells a dead network from dead URLs: then the shard must not count as done."""

    def __init__(self, name: str, num_requests: int) -> None:
        self._name = name
        self._num_left = num_requests
        self._num_asked = self._num_transient = 0  # without URLs that lead nowhere by themselves

    def note(self, answer: Body | SampleError) -> None:
        """Count one answer. Raises ShardError when all of enough fetches failed for a reason that may heal."""
        self._num_left -= 1
        if not isinstance(answer, SampleError):
            self._num_asked += 1
            return
        if answer.drop_reason != DropReason.INVALID_URL:
            self._num_asked += 1
            self._num_transient += answer.drop_reason in TRANSIENT
        is_enough = self._num_left == 0 and self._num_asked >= FEWEST_FOR_DEAD_NETWORK
        if self._num_transient == self._num_asked and (is_enough or self._num_asked >= EARLY_DEAD_NETWORK):
            raise ShardError(
                f"shard {self._name}: none of {self._num_asked} images could be fetched (last: {answer}); "
                "check the network and run the same command again"
            )
