"""Shards of one or more data sets, grouped into batches; one task reads one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pairloom.schemas.data_set.manifest import Manifest


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch."""

    max_rows: int = 250_000  # per batch
    min_batches: int = 32  # unless batches would get fewer than `min_rows` rows
    min_rows: int = 20_000


DEFAULT_LIMITS = BatchLimits()


@dataclass(frozen=True)
class Folders:
    """The folders with the columns of one data set."""

    raw: str
    scores: str | None = None  # the signal that decides which duplicate is kept
    hashes: str | None = None  # a phash256 signal
    features: str | None = None  # a signal with image features, for semantic dedupe
    score_column: str = "clip_score"  # of `scores`


@dataclass(frozen=True)
class Batch:
    """Shards that one task reads, or whose decisions it writes."""

    index: int
    folders: Folders
    shards: tuple[tuple[int, str], ...]  # (index among all shards, name); own shards come first


def cut_batches(folders: Sequence[tuple[Folders, Manifest]], limits: BatchLimits = DEFAULT_LIMITS) -> list[Batch]:
    """Batches of consecutive shards of one folder, with similar numbers of rows; the first folder is the own one."""
    num_rows = sum(manifest.num_rows for _, manifest in folders)
    size = min(limits.max_rows, max(limits.min_rows, num_rows // limits.min_batches))
    batches: list[Batch] = []
    index = 0
    for folder, manifest in folders:
        shards: list[tuple[int, str]] = []
        rows = 0
        for shard in manifest.shards:
            shards.append((index, shard.name))
            index, rows = index + 1, rows + shard.num_rows
            if rows >= size or shard is manifest.shards[-1]:
                batches.append(Batch(len(batches), folder, tuple(shards)))
                shards, rows = [], 0
    return batches
