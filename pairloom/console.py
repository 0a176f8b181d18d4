"""Progress of long work on stderr: a live bar on a terminal, a plain line every few seconds elsewhere. Internal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class _Bar(Progress):
    """A progress bar with a line of text below it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(f"  {self.note}")


class ConsoleProgress:
    """Shows how much of `total` is done. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, name: str, unit: str, total: int, done: int = 0, logger: str = "pairloom") -> None:
        self._name, self._unit, self._total = name, unit, total
        self._logger = logging.getLogger(logger)
        self._last_line = time.monotonic()
        self._bar: _Bar | None = None
        if sys.stderr.isatty():
            amount = f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"
            self._bar = _Bar(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                TextColumn(amount),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=total, completed=done)

    def show(self, done: int, note: str = "", is_last: bool = False) -> None:
        """Show the state: always on a terminal, elsewhere when the last line is old, or for `is_last`."""
        if self._bar is not None:
            self._bar.note = note
            self._bar.update(self._task, completed=done)
        elif is_last or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            amount = f"{done:,} of {self._total:,} {self._unit}"
            self._logger.info("%s: %s", self._name, f"{amount}, {note}" if note else amount)

    def start(self) -> None:
        """Draw the bar, on a terminal."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
