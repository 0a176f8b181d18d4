"""Tells a network that is down from hosts that are: the circuit that stops a shard before it fills with false failures.

When nearly all of the last exchanges failed, far more than before, no request starts any more and a few hosts that
answered a while ago are asked again, over new connections and with new name look-ups. If they answer, the URLs were bad
and the fetch goes on. If they do not, the network is down: the circuit stays open until a later probe is answered, and
what failed since is fetched again; where no probe is answered in time, the shard is not done.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from pairloom.schemas.errors import ShardError

WINDOW = 40  # exchanges, and also first exchanges with as many hosts
FEWEST_AT_END = 5  # failures in a row at the end of a shard that are looked into
JUMP_TO, JUMP_BY, ALWAYS = 0.75, 0.25, 0.98  # of the window, and above the rate before
MEMORY = 0.005  # weight of the newest exchange in the rate before
MAX_GOOD = 256  # hosts that are known to answer
NUM_PROBES = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0


class NetworkDownError(ShardError):
    """The network is down and stays so."""


class FailureWindow:
    """The last exchanges, and the rate of failures before them."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, bool]] = deque()
        self._num_failed = 0
        self._rate_before = 0.0

    def note(self, has_failed: bool) -> None:
        """Add an exchange."""
        self._recent.append((time.monotonic(), has_failed))
        self._num_failed += has_failed
        if len(self._recent) > WINDOW:
            _, old = self._recent.popleft()
            self._num_failed -= old
            self._rate_before += MEMORY * (old - self._rate_before)

    def has_jumped(self) -> bool:
        """Whether nearly all failed now, and not before."""
        limit = min(ALWAYS, max(JUMP_TO, self._rate_before + JUMP_BY))
        return len(self._recent) >= WINDOW and self._num_failed >= limit * WINDOW

    def forget(self) -> None:
        """Begin anew; the rate before stays."""
        self._recent.clear()
        self._num_failed = 0

    @property
    def began_at(self) -> float:
        """Time of the oldest exchange."""
        return self._recent[0][0] if self._recent else time.monotonic()


class Circuit:
    """Keep one a process: what answered in the last shard is a good probe in this one."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._good: OrderedDict[str, None] = OrderedDict()
        self._exchanges, self._first_contacts = FailureWindow(), FailureWindow()
        self.begin()

    def begin(self) -> None:
        """Begin a shard."""
        self._met: set[str] = set()
        self._num_failed_in_row = 0
        self._exchanges.forget()
        self._first_contacts.forget()
        self.num_answers = 0
        self.bad_since = 0.0  # of the last outage, time.monotonic()
        self._num_probes = 0
        self._close()

    def _close(self) -> None:
        self.is_open = False
        self._is_down = False  # a probe has failed
        self._open_since = self._next_probe_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self._num_waiting = self._num_answered = 0  # probes

    def note(self, origin: str, has_failed: bool) -> None:
        """Count an exchange; a failed one ended without a whole answer."""
        self._exchanges.note(has_failed)
        if origin not in self._met:
            self._met.add(origin)
            self._first_contacts.note(has_failed)
        if has_failed:
            self._num_failed_in_row += 1
            return
        self._num_failed_in_row = 0
        self.num_answers += 1
        self._good[origin] = None
        self._good.move_to_end(origin)
        if len(self._good) > MAX_GOOD:
            self._good.popitem(last=False)

    def trip(self, is_end: bool) -> bool:
        """Open the circuit where the failures ask for it; probes are due then."""
        if self.is_open or not self._good:
            return False
        windows = [window for window in (self._exchanges, self._first_contacts) if window.has_jumped()]
        if not windows and not (is_end and self._num_failed_in_row >= FEWEST_AT_END):
            return False
        self.is_open = True
        self._open_since = time.monotonic()
        self.bad_since = min(window.began_at for window in windows) if windows else self._exchanges.began_at
        return True

    def probes(self) -> list[str]:
        """Origins to be asked now; each ends with `note_probe`. Raises NetworkDownError when patience is over."""
        now = time.monotonic()
        if not self.is_open or self._num_waiting or now < self._next_probe_at:
            return []
        if self._is_down and now - self._open_since > self._patience_s:
            raise NetworkDownError(
                f"the network is down: none of the hosts that answered before has answered for "
                f"{self._patience_s:g} s; check the network and run the same command again"
            )
        chosen = list(self._good)[-NUM_PROBES:]
        self._num_waiting, self._num_answered = len(chosen), 0
        self._num_probes = len(chosen)
        return chosen

    def note_probe(self, has_answered: bool) -> bool:
        """Count a probe; True when the network is back and what failed since `bad_since` should be fetched again."""
        self._num_waiting -= 1
        self._num_answered += has_answered
        if self._num_waiting:
            return False
        if 2 * self._num_answered >= self._num_probes:
            was_down = self._is_down
            self._exchanges.forget()
            self._first_contacts.forget()
            self._num_failed_in_row = 0
            self._close()
            return was_down
        self._is_down = True
        self._next_probe_at = time.monotonic() + self._wait_s
        self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)
        return False

    def seconds_to_probe(self) -> float:
        """Until `probes` has something to ask."""
        return max(0.0, self._next_probe_at - time.monotonic())
