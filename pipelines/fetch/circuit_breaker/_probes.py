"""Probes: requests to hosts that answered before, which test whether the network works."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

MAX_ORIGINS = 256  # origins kept as candidates for probes
NUM_PROBES = 5
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 10.0  # between two rounds of probes; doubles


class Probes:
    """Rounds of up to `NUM_PROBES` probes of hosts that answered before, and of other hosts.

    A round fails when fewer than half of its probes are answered; with other hosts, when none is.
    """

    def __init__(self) -> None:
        self._origins: OrderedDict[str, None] = OrderedDict()  # answered before, the latest last
        self.reset()

    def reset(self) -> None:
        """Prepare the first round; the known origins stay."""
        self.has_failed = False  # a round failed
        self._next_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self._num_needed = self._num_pending = self._num_answered = 0

    def add_origin(self, origin: str) -> None:
        """Remember an origin that answered."""
        self._origins[origin] = None
        self._origins.move_to_end(origin)
        if len(self._origins) > MAX_ORIGINS:
            self._origins.popitem(last=False)

    @property
    def has_origins(self) -> bool:
        """Whether a probe is possible at all."""
        return bool(self._origins)

    @property
    def is_due(self) -> bool:
        """Whether the next round may start."""
        return not self._num_pending and time.monotonic() >= self._next_at

    def start_round(self, others: Sequence[str] = ()) -> list[str]:
        """The origins to probe; each must end in one `record`. `others`: origins that never answered here."""
        chosen = list(dict.fromkeys([*list(self._origins)[-NUM_PROBES:], *others]))
        self._num_pending = len(chosen)
        self._num_needed = 1 if others else (len(chosen) + 1) // 2
        self._num_answered = 0
        return chosen

    def record(self, has_answered: bool) -> bool:
        """Count the result of one probe. Returns True when the round is over and succeeded."""
        self._num_pending -= 1
        self._num_answered += has_answered
        if self._num_pending:
            return False
        if self._num_answered >= self._num_needed:
            return True
        self.has_failed = True
        self._next_at = time.monotonic() + self._wait_s
        self._wait_s = min(MAX_WAIT_S, 2 * self._wait_s)
        return False

    def seconds_to_next(self) -> float:
        """Seconds until the next round is due."""
        return max(0.0, self._next_at - time.monotonic())
