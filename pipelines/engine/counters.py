"""Counts of rows, images, bytes and drops, sent from the workers to the driver while shards are being made.

    worker: Report.note_image / note_drop per row -> at most one message per second -> Collector (actor without a CPU)
    driver: Collector.totals() a few times per second -> terminal and metrics.jsonl
    Prometheus: the collector's metrics, at the metrics port of each node as `ray_pairloom_rows_total`, ...

A message holds the counts of a shard so far, not an increment: lost or repeated messages do no harm, and a shard that
is tried again counts once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import metrics

SECONDS_BETWEEN_REPORTS = 1.0
FLUSH_TIMEOUT_S = 5.0


@dataclass
class Counts:
    """Numbers of rows by outcome."""

    rows: int = 0  # finished: with an image or dropped
    images: int = 0
    num_bytes: int = 0  # of the images as stored
    dropped: Counter[str] = field(default_factory=Counter)  # by reason


class Report:
    """A worker's counts of one shard. Thread-safe; without a collector it only counts."""

    def __init__(self, collector: Any = None, shard: int = 0) -> None:
        self.counts = Counts()
        self._collector, self._shard = collector, shard
        self._lock = threading.Lock()
        self._sent_at = time.monotonic()

    def note_image(self, num_bytes: int) -> None:
        """Count a row with an image."""
        with self._lock:
            self.counts.rows += 1
            self.counts.images += 1
            self.counts.num_bytes += num_bytes
            self._send_if_due()

    def note_drop(self, reason: str) -> None:
        """Count a dropped row."""
        with self._lock:
            self.counts.rows += 1
            self.counts.dropped[reason] += 1
            self._send_if_due()

    def flush(self) -> None:
        """Send the last counts of the shard and wait for their delivery; the driver shows them at the end."""
        if self._collector is not None:
            ray.wait([self._collector.update.remote(self._shard, self.counts)], timeout=FLUSH_TIMEOUT_S)

    def _send_if_due(self) -> None:
        if self._collector is not None and time.monotonic() - self._sent_at > SECONDS_BETWEEN_REPORTS:
            self._sent_at = time.monotonic()
            self._collector.update.remote(self._shard, self.counts)  # without waiting


class Collector:
    """Sums the counts of all shards of a step. Runs as a Ray actor; Prometheus scrapes its metrics."""

    def __init__(self, step: str) -> None:
        self._of_shards: dict[int, Counts] = {}
        self._totals = Counts()
        tags = {"step": step}

        def counter(name: str, description: str, *more_tags: str) -> Any:
            made = metrics.Counter(f"pairloom_{name}_total", description, tag_keys=("step", *more_tags))
            made.set_default_tags(tags)
            return made

        self._rows = counter("rows", "Rows of the source that have an image or were dropped.")
        self._images = counter("images", "Images stored.")
        self._bytes = counter("bytes", "Bytes of the images stored.")
        self._dropped = counter("dropped", "Rows dropped, by reason.", "reason")

    def update(self, shard: int, counts: Counts) -> None:
        """Set the counts of one shard; counts never decrease."""
        known = self._of_shards.setdefault(shard, Counts())
        for name, metric in (("rows", self._rows), ("images", self._images), ("num_bytes", self._bytes)):
            more = getattr(counts, name) - getattr(known, name)
            if more > 0:
                setattr(known, name, getattr(counts, name))
                setattr(self._totals, name, getattr(self._totals, name) + more)
                metric.inc(more)
        for reason, number in counts.dropped.items():
            more = number - known.dropped[reason]
            if more > 0:
                known.dropped[reason] = number
                self._totals.dropped[reason] += more
                self._dropped.inc(more, tags={"reason": reason})

    def totals(self) -> Counts:
        """Counts of all shards."""
        return self._totals
