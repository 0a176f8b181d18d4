"""Shards of one or more data sets, cut into batches that one task reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pairloom.schemas.data_set.manifest import Manifest


@dataclass(frozen=True)
class BatchLimits:
    """How shards are cut into batches."""

    max_rows: int = 250_000  # read by one task
    min_batches: int = 32  # where there are enough shards of `min_rows` rows
    min_rows: int = 20_000


DEFAULT_LIMITS = BatchLimits()


@dataclass(frozen=True)
class Folders:
    """Where the columns of one data set lie."""

    raw: str
    scores: str | None = None  # the signal that decides which duplicate is kept
    hashes: str | None = None  # a phash256 signal
    features: str | None = None  # a signal with image features, for semantic dedupe
    score_column: str = "clip_score"  # of `scores`


@dataclass(frozen=True)
class Batch:
    """Shards that one task reads, or writes the decisions of."""

    index: int
    folders: Folders
    shards: tuple[tuple[int, str], ...]  # place among all shards, own ones first, and name


def cut_batches(folders: Sequence[tuple[Folders, Manifest]], limits: BatchLimits = DEFAULT_LIMITS) -> list[Batch]:
    """Shards of one folder, in order, about as many rows in each batch; the first folder is our own."""
    num_rows = sum(manifest.num_rows for _, manifest in folders)
    size = min(limits.max_rows, max(limits.min_rows, num_rows // limits.min_batches))
    batches: list[Batch] = []
    place = 0
    for folder, manifest in folders:
        shards: list[tuple[int, str]] = []
        rows = 0
        for shard in manifest.shards:
            shards.append((place, shard.name))
            place, rows = place + 1, rows + shard.num_rows
            if rows >= size or shard is manifest.shards[-1]:
                batches.append(Batch(len(batches), folder, tuple(shards)))
                shards, rows = [], 0
    return batches
