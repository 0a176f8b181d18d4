"""On SIGTERM or SIGINT, finish the current step and save a checkpoint."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from types import FrameType


@dataclass
class StopSignal:
    """`received` is true after SIGTERM (preemption) or SIGINT."""

    received: bool = field(default=False)

    def __post_init__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # signals cannot be handled in a worker of Ray Train
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
