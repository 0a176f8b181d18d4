"""Compares the planted copies and wrong captions with the findings of the curation. Only the report reads the truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table

Truth = Mapping[str, Mapping[str, Any]]  # url -> row of truth.jsonl


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision: the share of findings that are right. Recall: the share of planted rows that were found."""

    precision: float
    recall: float
    num_found: int
    num_planted: int


def load_truth(path: Path) -> Truth:
    """The rows of truth.jsonl by their URL."""
    return {row["url"]: row for row in map(json.loads, path.read_text().splitlines())}


def read_rows(folder: str, columns: list[str] | None = None) -> pa.Table:
    """The tables of all shards of a finished step, one after another (the demo's tables fit in memory)."""
    shards = load_manifest(folder).shards
    return pa.concat_tables([read_table(table_url(folder, shard.name), columns) for shard in shards])


def duplicate_figures(truth: Truth, raw: str, dedupe: str) -> PrecisionRecall:
    """Pairs of rows that the dedupe put into one group, against pairs of copies of one picture."""
    rows = read_rows(raw, ["url", "status"])
    groups = read_rows(dedupe, ["duplicate_group"])["duplicate_group"].to_pylist()
    planted: list[Hashable] = []
    found: list[Hashable] = []
    for url, status, group in zip(rows["url"].to_pylist(), rows["status"].to_pylist(), groups, strict=True):
        if status == "success":
            planted.append(truth[url]["picture"])
            found.append(group)
    both = _num_pairs(list(zip(planted, found, strict=True)))
    num_found, num_planted = _num_pairs(found), _num_pairs(planted)
    return PrecisionRecall(both / max(1, num_found), both / max(1, num_planted), num_found, num_planted)


def _num_pairs(labels: Sequence[Hashable]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(labels).values())


def mismatch_figures(truth: Truth, raw: str, selection: str) -> PrecisionRecall:
    """Samples dropped for a low score, against samples whose caption belongs to another picture."""
    urls = read_rows(raw, ["url"])["url"].to_pylist()
    decisions = read_rows(selection, ["kept", "drop_reason"])
    num_found = num_planted = num_both = 0
    for url, kept, reason in zip(
        urls, decisions["kept"].to_pylist(), decisions["drop_reason"].to_pylist(), strict=True
    ):
        if kept or reason == "low_score":
            is_found, is_planted = reason == "low_score", bool(truth[url]["mismatched"])
            num_found += is_found
            num_planted += is_planted
            num_both += is_found and is_planted
    return PrecisionRecall(num_both / max(1, num_found), num_both / max(1, num_planted), num_found, num_planted)


def scores_by_truth(truth: Truth, raw: str, signal: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """clip_score of pairs that match and of pairs that do not."""
    urls = read_rows(raw, ["url"])["url"].to_pylist()
    scores = read_rows(signal, ["clip_score"])["clip_score"].to_pylist()
    matched: list[float] = []
    mismatched: list[float] = []
    for url, score in zip(urls, scores, strict=True):
        if score is not None:
            (mismatched if truth[url]["mismatched"] else matched).append(score)
    return np.array(matched), np.array(mismatched)


def auc(positives: npt.NDArray[np.float64], negatives: npt.NDArray[np.float64]) -> float:
    """Probability that a positive scores above a negative (ties count half)."""
    order = np.sort(negatives)
    below = np.searchsorted(order, positives, side="left")
    not_above = np.searchsorted(order, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def num_unexplained(raw: str) -> int:
    """Input rows that are neither stored nor have a drop reason: must be 0."""
    rows = read_rows(raw, ["status", "drop_reason"])
    pairs = zip(rows["status"].to_pylist(), rows["drop_reason"].to_pylist(), strict=True)
    return sum(status != "success" and not reason for status, reason in pairs)


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """(samples_seen, loss) of each step of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["samples_seen"], record["loss"]) for record in records if "loss" in record]
