"""Names that did not resolve, so that no look-up is made for the next URL of a host that is gone."""

from __future__ import annotations

import time
from collections import OrderedDict

from pairloom.schemas.errors import SampleError

LOST_S = 300.0  # until a name is looked up again
MAX_NAMES = 100_000


class LostNames:
    """The negative DNS cache of a process."""

    def __init__(self) -> None:
        self._errors: OrderedDict[str, tuple[float, SampleError]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._errors)

    def get(self, name: str) -> SampleError | None:
        """Why a name does not resolve, where that was found out a short time ago."""
        entry = self._errors.get(name)
        if entry is None:
            return None
        if entry[0] < time.monotonic():
            del self._errors[name]
            return None
        return entry[1]

    def put(self, name: str, error: SampleError) -> None:
        """Remember a failed look-up; the oldest leave first."""
        self._errors[name] = (time.monotonic() + LOST_S, error)
        self._errors.move_to_end(name)
        if len(self._errors) > MAX_NAMES:
            self._errors.popitem(last=False)

    def clear(self) -> None:
        """Forget all: the network was down, not the names."""
        self._errors.clear()
