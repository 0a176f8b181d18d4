"""Notice that the machine is wanted back, so that the step in hand is finished and saved."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from types import FrameType


@dataclass
class StopSignal:
    """True in `received` once SIGTERM (preemption) or SIGINT has come."""

    received: bool = field(default=False)

    def __post_init__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # not so in a worker of Ray Train
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
