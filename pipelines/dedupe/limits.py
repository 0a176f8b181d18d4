"""How much one task of dedupe takes. The cut changes memory and speed, never a decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from pairloom.pipelines.engine.batches import BatchLimits


@dataclass(frozen=True)
class DedupeLimits:
    """Sizes of tasks."""

    batches: BatchLimits = field(default_factory=BatchLimits)
    rows_per_part: int = 1_000_000  # decided by one task: about 1 GB
    hashes_per_partition: int = 4_000_000  # searched by one task: about 130 MB for 64-bit hashes
    rows_per_join: int = 10_000_000  # samples per part of the join; where all are linked, about 1.3 GB


DEFAULT_LIMITS = DedupeLimits()
