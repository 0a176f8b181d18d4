"""Progress of a long step: live on a terminal, a plain line every few seconds elsewhere (stderr).

`Progress` counts shards. `CountedProgress` also shows the counts of the workers (counters.py): rows,
images and megabytes per second, the share of kept rows, the most frequent drop reasons and the time left. It writes
the same to a `metrics.jsonl`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pairloom.console import ConsoleProgress
from pairloom.pipelines.engine.counters import Counts
from pairloom.pipelines.engine.metrics_file import MetricsFile

RATE_WINDOW_S = 30.0  # rates are averages over the last half minute
SHORT_WAIT_S, LONG_WAIT_S = 0.5, 5.0  # timeouts for reading counts: during the step, at its end
NUM_REASONS = 3


class Progress:
    """Counts finished shards of one step. Use as a context manager."""

    def __init__(self, step: str, total: int, done: int = 0) -> None:
        self.step = step
        self.total = total
        self.done = done
        self._console = ConsoleProgress(step, "shards", total, done)

    def advance(self) -> None:
        """Count one finished shard."""
        self.done += 1
        self.refresh()

    def refresh(self) -> None:
        """Show the progress; called a few times per second."""
        self._show()

    def _show(self, is_last: bool = False) -> None:
        self._console.show(self.done, self._note(), is_last)

    def _note(self) -> str:
        return ""

    def close(self) -> None:
        """Show the last state; the step has finished or failed."""
        self._show(is_last=True)

    def __enter__(self) -> Self:
        self._console.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._console.stop()


@dataclass(frozen=True)
class Meter:
    """Source and destination of a step's counts."""

    num_rows: int | None  # rows left to do; None: unknown
    metrics_url: str
    read: Callable[[float], Counts | None]  # argument: timeout in seconds; None: no answer


class CountedProgress(Progress):
    """Also shows the counts of the workers."""

    def __init__(self, step: str, total: int, done: int, meter: Meter) -> None:
        super().__init__(step, total, done)
        self._meter, self._done_before = meter, done
        self._counts = Counts()
        self._started_at = time.monotonic()
        self._history = deque([(self._started_at, 0, 0, 0)])  # time, rows, images, bytes
        self._file = MetricsFile(meter.metrics_url)

    def refresh(self) -> None:
        """Show the newest counts of the workers."""
        self._take(self._meter.read(SHORT_WAIT_S))
        self._file.put_if_due(self._line)
        self._show()

    def close(self) -> None:
        """Show the last counts and write them to the metrics."""
        self._take(self._meter.read(LONG_WAIT_S))
        self._file.put(self._line())
        self._show(is_last=True)

    def _take(self, counts: Counts | None) -> None:
        now = time.monotonic()
        self._counts = counts or self._counts
        if now - self._history[-1][0] >= 1.0:
            self._history.append((now, self._counts.rows, self._counts.images, self._counts.num_bytes))
        while len(self._history) > 2 and now - self._history[1][0] > RATE_WINDOW_S:
            self._history.popleft()

    def _rates(self) -> tuple[float, float, float]:
        """Rows, images and bytes per second."""
        then, *before = self._history[0]
        seconds = max(time.monotonic() - then, 1e-3)
        now = (self._counts.rows, self._counts.images, self._counts.num_bytes)
        rows, images, num_bytes = ((new - old) / seconds for new, old in zip(now, before, strict=True))
        return rows, images, num_bytes

    def _seconds_left(self) -> float | None:
        """Estimated by rows if their number is known, else by shards."""
        if self._meter.num_rows is not None:
            rows_per_s = self._rates()[0]
            return max(0, self._meter.num_rows - self._counts.rows) / rows_per_s if rows_per_s else None
        elapsed_s, num_done = time.monotonic() - self._started_at, self.done - self._done_before
        return elapsed_s / num_done * (self.total - self.done) if num_done else None

    def _left(self) -> str:
        seconds = self._seconds_left()
        return "" if seconds is None or self.done == self.total else f"{_duration(seconds)} left"

    def _note(self) -> str:
        counts = self._counts
        if not counts.rows:
            return ""
        rows_per_s, images_per_s, bytes_per_s = self._rates()
        parts = [f"{rows_per_s:,.0f} rows/s", f"{images_per_s:,.0f} images/s", f"{bytes_per_s / 1e6:,.1f} MB/s"]
        parts.append(f"{counts.images / counts.rows:.1%} kept")
        reasons = [f"{reason} {number / counts.rows:.1%}" for reason, number in counts.dropped.most_common(NUM_REASONS)]
        left = self._left()
        return ", ".join(parts + reasons + ([left] if left else []))

    def _line(self) -> dict[str, object]:
        """A line of metrics.jsonl."""
        counts, seconds_left = self._counts, self._seconds_left()
        rows_per_s, images_per_s, bytes_per_s = self._rates()
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "step": self.step,
            "seconds": round(time.monotonic() - self._started_at, 1),
            "seconds_left": None if seconds_left is None else round(seconds_left),
            "shards_done": self.done,
            "shards_total": self.total,
            "rows": counts.rows,
            "images": counts.images,
            "bytes": counts.num_bytes,
            "dropped": dict(sorted(counts.dropped.items())),
            "rows_per_s": round(rows_per_s, 1),
            "images_per_s": round(images_per_s, 1),
            "bytes_per_s": round(bytes_per_s),
        }


def _duration(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
