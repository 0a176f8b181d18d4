"""How long a step waits for its samples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pairloom.trainers.data.loader import Share


@dataclass(frozen=True)
class TimedShare:
    """A share, and the part of the time since the last one that was spent waiting for it."""

    value: Share
    wait_fraction: float


def timed(source: Iterator[Share]) -> Iterator[TimedShare]:
    """Measure how long each share is waited for."""
    last = time.monotonic()
    iterator = iter(source)
    while True:
        asked = time.monotonic()
        share = next(iterator, None)
        if share is None:
            return
        now = time.monotonic()
        yield TimedShare(share, round((now - asked) / max(1e-9, now - last), 4))
        last = now
