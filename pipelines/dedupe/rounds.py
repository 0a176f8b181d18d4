"""The rounds of tasks of a dedupe: read batches of shards, decide parts of the samples, write batches.

    read    batch of shards -> samples by part of their node, hashes by part of the search, keys of equal bytes
    search  part of the search -> pairs; then rounds request their colours (colour_bounds.py)
    link    part of the search, or of the keys -> links of nodes; then rounds join them (join_rounds.py)
    move    part of the nodes -> samples whose root is in another part
    decide  part -> decisions, by batch of shards
    write   batch -> the tables of its shards

With few samples there is one part, which needs no links. Spill files connect the rounds: the driver holds a few bytes
per shard, a task its batch or its part. The parts follow from the number of samples alone. A killed run leaves its
files; the next run reuses the batches that were read, half of the work, and repeats the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pairloom.pipelines.algorithms.forest import forest
from pairloom.pipelines.dedupe.criteria.feature_contamination import nearest_in_set
from pairloom.pipelines.dedupe.decide import Context, Decisions, decide
from pairloom.pipelines.dedupe.limits import DedupeLimits
from pairloom.pipelines.dedupe.links import candidate_links
from pairloom.pipelines.dedupe.links.candidate_links_256 import SearchPlan256, plan_search256
from pairloom.pipelines.dedupe.links.colour_bounds import (
    Colours,
    pairs_with_near_colours,
    request_colours,
    write_colours,
)
from pairloom.pipelines.dedupe.links.join_rounds import plan_join, write_links
from pairloom.pipelines.dedupe.sample_records import SampleRecords, read_sample_records
from pairloom.pipelines.dedupe.summary import Summary
from pairloom.pipelines.engine.batches import Batch
from pairloom.pipelines.engine.feature_files import features_of_rows
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.recipes.dedupe import DedupeRecipe
from pairloom.schemas.storage import storage

SPILL = "spill"  # folder of the spill files; removed when the step is complete


@dataclass(frozen=True)
class Plan:
    """The split of the work into tasks."""

    num_rows: int  # samples (upper bound)
    first_shards: tuple[int, ...]  # of each batch
    num_parts: int
    search: candidate_links.SearchPlan | SearchPlan256
    limits: DedupeLimits

    def batch_of(self, shards: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The batch of each shard."""
        return np.searchsorted(np.array(self.first_shards), shards, side="right") - 1


class Tables:
    """The spill tables between the rounds."""

    def __init__(self, folder: str, plan: Plan) -> None:
        batches, parts, searches = len(plan.first_shards), plan.num_parts, plan.search.num_tasks
        cut = hashlib.sha256(repr((plan, SampleRecords.__annotations__)).encode()).hexdigest()
        self.folder = storage.join(folder, SPILL, cut[:8])  # no reuse by a version with another split

        def table(name: str, num_files: int, num_parts: int) -> SpillTable:
            return SpillTable(storage.join(self.folder, name), num_files, num_parts)

        self.samples = table("samples", batches, parts)
        self.hashes = table("hashes", batches, searches)
        self.keys = table("keys", batches, parts)
        self.join = plan_join(
            storage.join(self.folder, "join"), searches + parts, plan.num_rows, plan.limits.rows_per_join
        )
        self.colours = Colours(storage.join(self.folder, "colours"), batches, searches, self.join.num_parts)
        self.roots = table("roots", self.join.num_parts, parts)
        self.moved = table("moved", parts, parts)
        self.drafts = table("drafts", parts, 1)
        self.left = table("left", parts, batches)
        self.decisions = table("decisions", parts, batches)


@dataclass(frozen=True)
class Job:
    """The arguments that all tasks share."""

    settings: DedupeRecipe
    plan: Plan
    tables: Tables
    context: Sequence[Any]  # a reference to `Context`; in a list, Ray passes references, not copies


def make_plan(num_rows: int, batches: Sequence[Batch], settings: DedupeRecipe, limits: DedupeLimits) -> Plan:
    """The plan for `num_rows` samples."""
    rule, per_partition = settings.perceptual, limits.hashes_per_partition
    search: candidate_links.SearchPlan | SearchPlan256
    if rule is None:
        search = candidate_links.plan_search(num_rows, 0, 0, per_partition)
    elif rule.bits == 256:
        search = plan_search256(num_rows, rule.max_distance, per_partition)
    else:
        search = candidate_links.plan_search(num_rows, rule.max_distance, rule.max_colour_difference, per_partition)
    num_parts = max(1, -(-num_rows // limits.rows_per_part))
    return Plan(num_rows, tuple(batch.shards[0][0] for batch in batches), num_parts, search, limits)


def read_batch(job: Job, batch: Batch) -> list[Counter[int]]:
    """Read the samples of some shards and write them by part, unless an earlier run did.

    Returns per evaluation set the number of samples with near features per evaluation image.
    """
    marker = storage.join(job.tables.folder, "read", f"{batch.index:07d}.json")
    if storage.exists(marker):
        return [Counter(dict(counts)) for counts in json.loads(storage.read_text(marker))]
    by_features = _read_batch(job, batch)
    storage.put_bytes(marker, json.dumps([sorted(counts.items()) for counts in by_features]).encode())
    return by_features


def _read_batch(job: Job, batch: Batch) -> list[Counter[int]]:
    num_sets = len(job.settings.decontaminate)
    shards = [read_sample_records(batch.folders, job.settings.prefer, num_sets, shard) for shard in batch.shards]
    samples = np.concatenate([records.rows() for records in shards])
    tables, plan = job.tables, job.plan
    by_features = _compare_features(job, batch, samples)
    if plan.num_parts > 1:
        keys = candidate_links.key_rows(samples)
        tables.keys.write(batch.index, keys, spread(keys["key"], plan.num_parts))
        plan.search.write_hashes(tables.hashes, batch.index, samples)
        if plan.search.colour_limit is not None:
            write_colours(tables.colours, batch.index, samples)
    tables.samples.write(batch.index, samples, spread(candidate_links.nodes_of(samples), plan.num_parts))
    return by_features


def _compare_features(job: Job, batch: Batch, samples: Rows) -> list[Counter[int]]:
    """Set the nearest evaluation image by features in own samples. Returns the counts per set.

    Memory holds the features of one shard at a time, and one block of cosines.
    """
    context: Context = ray.get(job.context[0])
    counts: list[Counter[int]] = [Counter() for _ in context.sets]
    if batch.shards[0][0] >= context.num_own:
        return counts
    for number, (rule, evaluation) in enumerate(zip(job.settings.decontaminate, context.sets, strict=True)):
        folder = context.feature_folders[number]
        if folder is None or rule.semantic is None or evaluation.features is None:
            continue
        for shard, name in batch.shards:
            rows = np.flatnonzero(samples["shard"] == shard)
            features = features_of_rows(folder, name, samples["row"][rows])
            nearest, cosine, hits = nearest_in_set(features, evaluation.features, rule.semantic)
            samples["nearest_evaluation"][rows, number], samples["similarity"][rows, number] = nearest, cosine
            counts[number] += hits
    return counts


def search_part(job: Job, task: int) -> None:
    """Find near pairs in one part of the search, and request their colours."""
    request_colours(job.tables.colours, task, *job.plan.search.links(job.tables.hashes, task))


def link_part(job: Job, task: int) -> None:
    """Find links in one part of the search, or of the keys."""
    tables, search = job.tables, job.plan.search
    if task >= search.num_tasks:
        pairs = candidate_links.equal_part(tables.keys, task - search.num_tasks)
    elif search.colour_limit is None:
        pairs = search.links(tables.hashes, task)
    else:
        pairs = pairs_with_near_colours(tables.colours, task, search.colour_limit)
    write_links(tables.join, 0, task, forest(*pairs))


def move_part(job: Job, part: int) -> None:
    """Write the samples whose root is in another part."""
    samples, home = _with_homes(job, part)
    away = home != part
    job.tables.moved.write(part, samples[away], home[away])


def decide_part(job: Job, part: int) -> tuple[Summary, int]:
    """Decide one part. Returns its summary, and the number of remaining images with features."""
    samples, home = _with_homes(job, part)
    if job.plan.num_parts > 1:
        samples = np.concatenate([samples[home == part], job.tables.moved.read(part)])
    context: Context = ray.get(job.context[0])
    records = SampleRecords.of_rows(samples)
    decisions, summary = decide(records, job.settings, context)
    rows = _decision_rows(records, decisions)
    if job.settings.semantic is None:
        write_decisions(job, part, rows, context.num_own)
        return summary, 0
    job.tables.drafts.write(part, rows, np.zeros(len(rows), np.int64))
    left = _left_rows(records, decisions, part)
    left = left[context.with_features[job.plan.batch_of(left["shard"])]]
    job.tables.left.write(part, left, job.plan.batch_of(left["shard"]))
    return summary, len(left)


def write_decisions(job: Job, part: int, rows: Rows, num_own: int) -> None:
    """Write the decisions about own samples, by batch."""
    own = rows[rows["shard"] < num_own]
    job.tables.decisions.write(part, own, job.plan.batch_of(own["shard"]))


def _with_homes(job: Job, part: int) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The samples whose nodes are in a part, and the part that decides each."""
    samples = job.tables.samples.read(part)
    if job.plan.num_parts == 1:
        return samples, np.zeros(len(samples), np.int64)
    links = job.tables.roots.read(part)
    return samples, candidate_links.part_of(candidate_links.nodes_of(samples), links, job.plan.num_parts)


def _decision_rows(records: SampleRecords, decisions: Decisions) -> Rows:
    """One record per sample; samples of one image have the uid of its best sample."""
    return pack(
        {
            "shard": records.shard,
            "row": records.row,
            "reason": decisions.reason,
            "distance": decisions.distance,
            "similarity": decisions.similarity,
            "evaluation": decisions.evaluation,
            "kept_instead": records.uid[decisions.kept_instead],
            "group": records.uid[decisions.group],
            "image": records.uid[decisions.best_sample],
        }
    )


def _left_rows(records: SampleRecords, decisions: Decisions, part: int) -> Rows:
    """The images kept so far, represented by their best sample."""
    is_left = (decisions.best_sample == np.arange(records.num_rows)) & (decisions.reason == 0)
    left = np.flatnonzero(is_left)
    sizes = np.bincount(decisions.group, minlength=records.num_rows)
    names = ("uid", "shard", "row", "area", "score", "preference")
    columns = {name: getattr(records, name)[left] for name in names}
    groups = decisions.group[left]
    return pack(
        {
            **columns,
            "part": np.full(len(left), part, np.int32),
            "group": records.uid[groups],
            "group_size": sizes[groups],
        }
    )
