"""Shards of one or more data sets, cut into batches that one task reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pairloom.schemas.data_set.manifest import Manifest

ROWS_PER_BATCH = 250_000  # read by one task
LEAST_BATCHES = 32  # as far as there are so many shards of LEAST_ROWS rows
LEAST_ROWS = 20_000


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


def cut_batches(folders: Sequence[tuple[Folders, Manifest]]) -> list[Batch]:
    """Shards of one folder, in order, about as many rows in each batch; the first folder is our own."""
    num_rows = sum(manifest.num_rows for _, manifest in folders)
    size = min(ROWS_PER_BATCH, max(LEAST_ROWS, num_rows // LEAST_BATCHES))
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
