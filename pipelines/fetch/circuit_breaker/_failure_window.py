"""The failure rate of the last exchanges, compared with the rate before them."""

from __future__ import annotations

import time
from collections import deque

WINDOW = 40  # exchanges
MIN_RATE, MIN_INCREASE, MAX_THRESHOLD = 0.75, 0.25, 0.98  # failure rates in the window
MEMORY = 0.005  # weight of one exchange in the moving average of the rate before the window


class FailureWindow:
    """The last `WINDOW` exchanges, and a moving average of the failure rate before them."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, bool]] = deque()
        self._num_failed = 0
        self._rate_before = 0.0

    def record(self, has_failed: bool) -> None:
        """Add one exchange."""
        self._recent.append((time.monotonic(), has_failed))
        self._num_failed += has_failed
        if len(self._recent) > WINDOW:
            _, oldest = self._recent.popleft()
            self._num_failed -= oldest
            self._rate_before += MEMORY * (oldest - self._rate_before)

    def has_jumped(self) -> bool:
        """Whether nearly all exchanges of a full window failed, and fewer before it."""
        threshold = min(MAX_THRESHOLD, max(MIN_RATE, self._rate_before + MIN_INCREASE))
        return len(self._recent) >= WINDOW and self._num_failed >= threshold * WINDOW

    def clear(self) -> None:
        """Empty the window; the rate before it stays."""
        self._recent.clear()
        self._num_failed = 0

    @property
    def started_at(self) -> float:
        """time.monotonic() of the oldest exchange in the window."""
        return self._recent[0][0] if self._recent else time.monotonic()
