"""The rounds of tasks of a dedupe: batches of shards are read, parts of the samples are decided, batches are written.

    read    batch of shards -> samples by part of their node, hashes by part of the search, keys of equal bytes
    search  part of the search -> pairs; then their colours are asked for (`colours`)
    link    part of the search, or of the keys -> links of nodes; then rounds join them (`joined`)
    move    part of the nodes -> samples whose root lies in another part
    decide  part -> decisions, by batch of shards
    write   batch -> the tables of its shards

With few samples there is one part, which needs no links. Between the rounds lie files (`spill`): the driver holds a
few bytes a shard, a task its batch or its part. The parts follow from the number of samples alone. A run that is
killed leaves its files; the next one takes up what batches have been read, half of the work, and does the rest anew.
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
from pairloom.pipelines.dedupe.decide import Decisions, Known, decide
from pairloom.pipelines.dedupe.limits import DedupeLimits
from pairloom.pipelines.dedupe.links import links as linked
from pairloom.pipelines.dedupe.links.colour_bounds import (
    Colours,
    ask_for_colours,
    hand_out_colours,
    pairs_that_may_agree,
)
from pairloom.pipelines.dedupe.links.join_rounds import hand_on, plan_join
from pairloom.pipelines.dedupe.links.links_256 import WideSearchPlan, plan_wide_search
from pairloom.pipelines.dedupe.sample_records import Slim, read_slim
from pairloom.pipelines.dedupe.summary import Figures
from pairloom.pipelines.engine.batches import Batch
from pairloom.pipelines.engine.feature_files import features_of_rows
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.recipes.dedupe import DedupeRecipe
from pairloom.schemas.storage import storage

SPILL = "spill"  # folder of the files between the rounds, for as long as the step is not complete


@dataclass(frozen=True)
class Plan:
    """How the work is cut."""

    num_rows: int  # samples; an upper bound
    first_shards: tuple[int, ...]  # of each batch
    num_parts: int
    search: linked.SearchPlan | WideSearchPlan
    limits: DedupeLimits

    def batch_of(self, shards: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The batch that each shard belongs to."""
        return np.searchsorted(np.array(self.first_shards), shards, side="right") - 1


class Tables:
    """What lies between the rounds."""

    def __init__(self, folder: str, plan: Plan) -> None:
        batches, parts, searches = len(plan.first_shards), plan.num_parts, plan.search.num_tasks
        cut = hashlib.sha256(repr((plan, Slim.__annotations__)).encode()).hexdigest()
        self.folder = storage.join(folder, SPILL, cut[:8])  # what another version has cut otherwise is not taken up

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
    """What every task needs to know."""

    settings: DedupeRecipe
    plan: Plan
    tables: Tables
    known: Sequence[Any]  # a reference to `Known`; in a list, so that a task takes the reference and not a copy


def make_plan(num_rows: int, batches: Sequence[Batch], settings: DedupeRecipe, limits: DedupeLimits) -> Plan:
    """`num_rows` samples in all."""
    rule, per_partition = settings.perceptual, limits.hashes_per_partition
    search: linked.SearchPlan | WideSearchPlan
    if rule is None:
        search = linked.plan_search(num_rows, 0, 0, per_partition)
    elif rule.bits == 256:
        search = plan_wide_search(num_rows, rule.max_distance, per_partition)
    else:
        search = linked.plan_search(num_rows, rule.max_distance, rule.max_colour_difference, per_partition)
    num_parts = max(1, -(-num_rows // limits.rows_per_part))
    return Plan(num_rows, tuple(batch.shards[0][0] for batch in batches), num_parts, search, limits)


def read_batch(job: Job, batch: Batch) -> list[Counter[int]]:
    """Read the samples of some shards and hand them to the parts, unless an earlier run has done so.

    Returns how many samples each evaluation image is alike by its features, set by set.
    """
    note = storage.join(job.tables.folder, "read", f"{batch.index:07d}.json")
    if storage.exists(note):
        return [Counter(dict(counts)) for counts in json.loads(storage.read_text(note))]
    alike = _read_batch(job, batch)
    storage.put_bytes(note, json.dumps([sorted(counts.items()) for counts in alike]).encode())
    return alike


def _read_batch(job: Job, batch: Batch) -> list[Counter[int]]:
    num_sets = len(job.settings.decontaminate)
    parts = [read_slim(batch.folders, job.settings.prefer, num_sets, shard) for shard in batch.shards]
    samples = np.concatenate([part.rows() for part in parts])
    tables, plan = job.tables, job.plan
    alike = _compare_features(job, batch, samples)
    if plan.num_parts > 1:
        keys = linked.key_rows(samples)
        tables.keys.write(batch.index, keys, spread(keys["key"], plan.num_parts))
        plan.search.hand_out(tables.hashes, batch.index, samples)
        if plan.search.colour_limit is not None:
            hand_out_colours(tables.colours, batch.index, samples)
    tables.samples.write(batch.index, samples, spread(linked.nodes_of(samples), plan.num_parts))
    return alike


def _compare_features(job: Job, batch: Batch, samples: Rows) -> list[Counter[int]]:
    """Note in our own samples which evaluation image is nearest by its features; returns the counts, set by set.

    Features of one shard are held at a time, and of their cosines a block (`alike`).
    """
    known: Known = ray.get(job.known[0])
    counts: list[Counter[int]] = [Counter() for _ in known.sets]
    if batch.shards[0][0] >= known.num_own:
        return counts
    for number, (rule, evaluation) in enumerate(zip(job.settings.decontaminate, known.sets, strict=True)):
        folder = known.feature_folders[number]
        if folder is None or rule.semantic is None or evaluation.features is None:
            continue
        for shard, name in batch.shards:
            rows = np.flatnonzero(samples["shard"] == shard)
            features = features_of_rows(folder, name, samples["row"][rows])
            place, cosine, hits = nearest_in_set(features, evaluation.features, rule.semantic)
            samples["alike"][rows, number], samples["similarity"][rows, number] = place, cosine
            counts[number] += hits
    return counts


def search_part(job: Job, task: int) -> None:
    """Find near pairs by one part of the search, and ask for their colours."""
    ask_for_colours(job.tables.colours, task, *job.plan.search.links(job.tables.hashes, task))


def link_part(job: Job, task: int) -> None:
    """Find links: by one part of the search, or of the keys."""
    tables, search = job.tables, job.plan.search
    if task >= search.num_tasks:
        pairs = linked.equal_part(tables.keys, task - search.num_tasks)
    elif search.colour_limit is None:
        pairs = search.links(tables.hashes, task)
    else:
        pairs = pairs_that_may_agree(tables.colours, task, search.colour_limit)
    hand_on(tables.join, 0, task, forest(*pairs))


def move_part(job: Job, part: int) -> None:
    """Hand on the samples whose root lies in another part."""
    samples, home = _with_homes(job, part)
    away = home != part
    job.tables.moved.write(part, samples[away], home[away])


def decide_part(job: Job, part: int) -> tuple[Figures, int]:
    """Decide about one part; returns what the manifest tells, and how many images are left that have features."""
    samples, home = _with_homes(job, part)
    if job.plan.num_parts > 1:
        samples = np.concatenate([samples[home == part], job.tables.moved.read(part)])
    known: Known = ray.get(job.known[0])
    slim = Slim.of_rows(samples)
    decisions, figures = decide(slim, job.settings, known)
    rows = _decision_rows(slim, decisions)
    if job.settings.semantic is None:
        hand_out(job, part, rows, known.num_own)
        return figures, 0
    job.tables.drafts.write(part, rows, np.zeros(len(rows), np.int64))
    left = _left_rows(slim, decisions, part)
    left = left[known.with_features[job.plan.batch_of(left["shard"])]]
    job.tables.left.write(part, left, job.plan.batch_of(left["shard"]))
    return figures, len(left)


def hand_out(job: Job, part: int, rows: Rows, num_own: int) -> None:
    """Hand the decisions about our own samples to the tasks that write them."""
    own = rows[rows["shard"] < num_own]
    job.tables.decisions.write(part, own, job.plan.batch_of(own["shard"]))


def _with_homes(job: Job, part: int) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The samples whose nodes fall into a part, and the part that decides about each."""
    samples = job.tables.samples.read(part)
    if job.plan.num_parts == 1:
        return samples, np.zeros(len(samples), np.int64)
    links = job.tables.roots.read(part)
    return samples, linked.part_of(linked.nodes_of(samples), links, job.plan.num_parts)


def _decision_rows(slim: Slim, decisions: Decisions) -> Rows:
    """One record a sample; samples of one image carry the uid of its best one."""
    return pack(
        {
            "shard": slim.shard,
            "row": slim.row,
            "reason": decisions.reason,
            "distance": decisions.distance,
            "similarity": decisions.similarity,
            "evaluation": decisions.evaluation,
            "kept_instead": slim.uid[decisions.kept_instead],
            "group": slim.uid[decisions.group],
            "image": slim.uid[decisions.best_sample],
        }
    )


def _left_rows(slim: Slim, decisions: Decisions, part: int) -> Rows:
    """The images that are kept so far, by their best sample."""
    is_left = (decisions.best_sample == np.arange(slim.num_rows)) & (decisions.reason == 0)
    left = np.flatnonzero(is_left)
    sizes = np.bincount(decisions.group, minlength=slim.num_rows)
    names = ("uid", "shard", "row", "area", "score", "preference")
    columns = {name: getattr(slim, name)[left] for name in names}
    groups = decisions.group[left]
    return pack(
        {**columns, "part": np.full(len(left), part, np.int32), "group": slim.uid[groups], "group_size": sizes[groups]}
    )
