"""Sizes of dedupe's tasks. They change memory and speed, never a decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from pairloom.pipelines.engine.batches import BatchLimits


@dataclass(frozen=True)
class DedupeLimits:
    """Sizes of tasks."""

    batches: BatchLimits = field(default_factory=BatchLimits)
    rows_per_part: int = 1_000_000  # samples per deciding task, about 1 GB
    hashes_per_partition: int = 4_000_000  # hashes per search task, about 130 MB for 64-bit hashes
    rows_per_join: int = 10_000_000  # samples per part of the join, about 1.3 GB if all are linked


DEFAULT_LIMITS = DedupeLimits()
