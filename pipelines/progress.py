"""Progress of a long step: a live bar on a terminal, a plain line every few seconds elsewhere (stderr)."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger("pairloom")
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished units of one step. Use as a context manager."""

    def __init__(self, step: str, total: int, done: int = 0) -> None:
        self.step = step
        self.total = total
        self.done = done
        self._note = ""
        self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(step, total=total, completed=done, note="")

    def advance(self, note: str = "") -> None:
        """One more unit is done; `note` is shown beside the count."""
        self.done += 1
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last_line = time.monotonic()
            logger.info("%s: %d of %d shards %s", self.step, self.done, self.total, self._note)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
