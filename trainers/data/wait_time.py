"""The time that a step waits for its samples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pairloom.trainers.data.loader import Share


@dataclass(frozen=True)
class TimedShare:
    """A share, and the fraction of the time since the last one that was spent waiting for it, 0..1."""

    value: Share
    wait_fraction: float


def measure_wait(source: Iterator[Share]) -> Iterator[TimedShare]:
    """Measure the wait for each share."""
    last = time.monotonic()
    iterator = iter(source)
    while True:
        requested = time.monotonic()
        share = next(iterator, None)
        if share is None:
            return
        now = time.monotonic()
        yield TimedShare(share, round((now - requested) / max(1e-9, now - last), 4))
        last = now
