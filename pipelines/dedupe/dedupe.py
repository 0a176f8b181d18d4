"""Dedupe: find duplicates over the whole data set.

An *image* is all samples with the same bytes, as received or as stored, or the same pixels.

- Samples of one image with the same caption (after NFKC, case folding and collapsing of spaces) are exact duplicates;
  one is kept.
- Samples of one image with different captions are all kept, unless `same_image_captions: keep_one`. With `exact: false`
  samples of one image are not compared.
- Images near an image of an evaluation set (`decontaminate`), by hash or by features, are dropped with all their
  samples, and nothing is kept instead; `distance` and `similarity` are those to `evaluation_image`. The manifest has
  the counts.
- Images with near pHash (within `max_distance`, confirmed on the colour thumbnail) are perceptual duplicates, with any
  captions: copies are often resized, encoded again and captioned anew. All samples of an image are kept or dropped
  together.
- Placeholders (`placeholders`: an image, and images near it, under many unlike captions from many domains) are dropped.
- Images with near features are semantic duplicates (`semantic`), searched among the remaining images.
- Keep order: preferred values (`prefer`), then the largest as received (or the best scored), then the smallest uid.
  `duplicate_of` names a kept sample, or one that became a semantic duplicate itself: follow it. `distance` is 0 for
  exact duplicates and null for semantic ones, which have a `similarity`.
- `duplicate_group` is the connected component of all links, chains included; folds are functions of it.
- `against` names earlier raw folders. Their tables are read, never their images. Their samples come first in the keep
  order and get no decision: the new data set is deduplicated as if it were appended to them, by features too if they
  have features of the same model.

The result does not depend on the order of the shards or on the number of workers. The tasks: rounds.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pairloom.pipelines.dedupe.criteria.evaluation_set import EvaluationImages, read_evaluation_set
from pairloom.pipelines.dedupe.decide import REASONS, Context
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.dedupe.links.colour_bounds import report_colours
from pairloom.pipelines.dedupe.links.join_rounds import join_links
from pairloom.pipelines.dedupe.previous_data_sets import find_earlier, warn_of_missing_features
from pairloom.pipelines.dedupe.rounds import (
    SPILL,
    Job,
    Tables,
    decide_part,
    link_part,
    make_plan,
    move_part,
    read_batch,
    search_part,
)
from pairloom.pipelines.dedupe.sample_records import uid_texts
from pairloom.pipelines.dedupe.semantic_rounds import decide_semantic
from pairloom.pipelines.dedupe.summary import Contamination, Summary
from pairloom.pipelines.engine.batches import Batch, Folders, cut_batches
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import Rows
from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, StepResult, missing_tables, nothing
from pairloom.pipelines.images.image_sets import fingerprint_of
from pairloom.pipelines.signals.target_set import features_of_images
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, table_url
from pairloom.schemas.data_set.tables import DEDUPE, read_table, table_bytes, write_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.dedupe import DecontaminateRecipe
from pairloom.schemas.recipes.load import settings_of, step_hash
from pairloom.schemas.storage import storage

logger = logging.getLogger("pairloom")
STEP = "dedupe"
VERSION = 4


def dedupe_folder(recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str]) -> StepFolder:
    """The folder of the decisions."""
    parents = [load_manifest(raw_folder).hash()]
    if recipe.dedupe.score_signal is not None:
        parents.append(load_manifest(signal_folders[recipe.dedupe.score_signal]).hash())
    if recipe.dedupe.hashes is not None:
        parents.append(load_manifest(signal_folders[recipe.dedupe.hashes]).hash())
    for _, features in recipe.dedupe.features_used():
        parents.append(load_manifest(signal_folders[features]).hash())
    earlier = find_earlier(recipe)
    parents += [one.manifest.hash() for one in earlier]
    parents += [load_manifest(one.folders.features).hash() for one in earlier if one.folders.features is not None]
    settings = settings_of(recipe.dedupe)
    inputs = {
        f"evaluation set {index}": fingerprint_of(rule.path) for index, rule in enumerate(recipe.dedupe.decontaminate)
    }
    result = step_hash(STEP, VERSION, settings, parents, inputs)
    return StepFolder(recipe.root, STEP, recipe.dedupe.name, result, tuple(parents))


def dedupe(
    recipe: CurateRecipe,
    raw_folder: str,
    signal_folders: Mapping[str, str],
    before_work: BeforeWork = nothing,
    limits: DedupeLimits = DEFAULT_LIMITS,
) -> str:
    """Find the duplicates of a raw data set. Returns the folder of the decisions. Raises UserError."""
    target = dedupe_folder(recipe, raw_folder, signal_folders)
    return target.run_once(before_work, partial(_dedupe, recipe, raw_folder, signal_folders, target.url, limits))


def _dedupe(
    recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str], folder: str, limits: DedupeLimits
) -> StepResult:
    settings, raw = recipe.dedupe, load_manifest(raw_folder)
    earlier = find_earlier(recipe)
    not_compared = warn_of_missing_features(recipe, earlier)
    folders = [(_own_folders(recipe, raw_folder, signal_folders), raw)]
    folders += [(one.folders, one.manifest) for one in earlier]
    batches = cut_batches(folders, limits.batches)
    own = [batch for batch in batches if batch.shards[0][0] < len(raw.shards)]
    plan = make_plan(sum(manifest.num_samples for _, manifest in folders), batches, settings, limits)
    sets = [_read_set(recipe, rule) for rule in settings.decontaminate]
    compared = [signal_folders.get(settings.features_of(rule) or "") for rule in settings.decontaminate]
    urls = [table_url(folder.raw, shard.name) for folder, manifest in folders for shard in manifest.shards]
    with_features = np.array([batch.folders.features is not None for batch in batches])
    context = ray.put(Context(sets, compared, urls, len(raw.shards), with_features))
    job = Job(settings, plan, Tables(folder, plan), [context])
    summary, num_left = _decide(job, batches)
    if settings.semantic is not None:
        summary.groups = decide_semantic(job, batches, num_left)
    shards, counts = _write(job, own, folder, raw)
    if sets:
        table = summary.contamination_table(settings, sets)
        storage.put_bytes(storage.join(folder, "contamination.parquet"), table_bytes(table))
    details = summary.as_details(settings, sets) | not_compared
    return StepResult(shards, counts, details, scratch=(storage.join(folder, SPILL),))


def _own_folders(recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str]) -> Folders:
    settings = recipe.dedupe
    names = (settings.score_signal, settings.hashes, settings.semantic and settings.semantic.features)
    scores, hashes, features = (signal_folders[name] if name else None for name in names)
    return Folders(raw_folder, scores, hashes, features, recipe.keep_column or "")


def _read_set(recipe: CurateRecipe, rule: DecontaminateRecipe) -> EvaluationImages:
    """An evaluation set with the values that its rule compares. Raises InputError."""
    images = read_evaluation_set(rule.path, rule.max_distance_256 is not None)
    name = recipe.dedupe.features_of(rule)
    if name is None:
        return images
    features = features_of_images(rule.path, str(recipe.signal(name).feature_model()))
    if len(features) != len(images.name):
        raise InputError(f"dedupe.decontaminate: {rule.path}: images changed meanwhile; run the same command again")
    return replace(images, features=features)


def _decide(job: Job, batches: Sequence[Batch]) -> tuple[Summary, int]:
    """All decisions except the semantic ones. Returns the summary, and the number of remaining images."""
    num_parts, num_searches = job.plan.num_parts, job.plan.search.num_tasks
    summary, num_left = Summary([Contamination() for _ in job.settings.decontaminate]), 0
    for by_features in run_shards("dedupe: read", partial(read_batch, job), batches):
        summary += Summary([Contamination(by_features=counts) for counts in by_features])
    if num_parts > 1:
        if job.plan.search.colour_limit is not None:
            run_shards("dedupe: search", partial(search_part, job), range(num_searches))
            run_shards("dedupe: colours", partial(report_colours, job.tables.colours), range(job.tables.join.num_parts))
        run_shards("dedupe: link", partial(link_part, job), range(num_searches + num_parts))
        largest = join_links(job.tables.join, job.tables.roots)
        if largest > job.plan.limits.rows_per_part:
            logger.warning(
                "dedupe: one task decides a component of %d hashes; use workers with more memory",
                largest,
            )
        run_shards("dedupe: move", partial(move_part, job), range(num_parts))
    for of_part, left in run_shards("dedupe: decide", partial(decide_part, job), range(num_parts)):
        summary, num_left = summary + of_part, num_left + left
    return summary, num_left


def _write(job: Job, batches: Sequence[Batch], folder: str, raw: Manifest) -> tuple[list[ShardEntry], Counter[str]]:
    """Write the missing tables. Returns the manifest entries and the counts of drop reasons."""
    counts = np.zeros(len(REASONS), np.int64)
    kept: list[int] = []
    for of_batch in run_shards("dedupe: write", partial(write_batch, job, folder), batches):
        counts += of_batch.sum(axis=0)
        kept += of_batch[:, 0].tolist()
    shards = [
        ShardEntry(shard.name, shard.num_rows, num_kept, num_bytes=0)
        for shard, num_kept in zip(raw.shards, kept, strict=True)
    ]
    named = {reason.value: int(counts[code]) for code, reason in enumerate(REASONS) if reason and counts[code]}
    return shards, Counter(named)


def write_batch(job: Job, folder: str, batch: Batch) -> np.typing.NDArray[np.int64]:
    """Write the missing shards of one batch. Returns counts [shards, reasons]."""
    decisions = job.tables.decisions.read(batch.index)
    decisions = decisions[np.lexsort((decisions["row"], decisions["shard"]))]
    missing = set(missing_tables(folder, [name for _, name in batch.shards]))
    edges = np.searchsorted(decisions["shard"], [index for index, _ in batch.shards] + [batch.shards[-1][0] + 1])
    counts = np.zeros((len(batch.shards), len(REASONS)), np.int64)
    evaluations = _evaluation_names(job)
    for number, (_, name) in enumerate(batch.shards):
        mine = decisions[edges[number] : edges[number + 1]]
        counts[number] = np.bincount(mine["reason"], minlength=len(REASONS))
        if name in missing:
            write_shard(batch.folders.raw, folder, name, mine, evaluations)
    return counts


def _evaluation_names(job: Job) -> list[list[str]]:
    """Names of the evaluation images for the tables, per set."""
    context: Context = ray.get(job.context[0])
    rules = zip(job.settings.decontaminate, context.sets, strict=True)
    return [[f"{rule.path}: {name}" for name in images.name] for rule, images in rules]


def write_shard(raw_folder: str, folder: str, name: str, decisions: Rows, evaluations: list[list[str]]) -> None:
    """Write the decisions of one raw shard; rows without an image are null."""
    uids = read_table(table_url(raw_folder, name), ["uid"])["uid"]
    columns: dict[str, list[Any]] = {column: [None] * len(uids) for column in DEDUPE.names}
    columns["uid"] = uids.to_pylist()
    kept_instead, groups = uid_texts(decisions["kept_instead"]), uid_texts(decisions["group"])
    reasons, distances = decisions["reason"].tolist(), decisions["distance"].tolist()
    similarities = decisions["similarity"].tolist()
    for index, row in enumerate(decisions["row"].tolist()):
        columns["duplicate_group"][row] = groups[index]
        reason = REASONS[reasons[index]]
        if reason is not None:
            columns["drop_reason"][row] = reason.value
            if reason not in (DropReason.CONTAMINATED, DropReason.PLACEHOLDER):  # nothing is kept instead
                columns["duplicate_of"][row] = kept_instead[index]
            if distances[index] >= 0:
                columns["distance"][row] = distances[index]
            if not np.isnan(similarities[index]):
                columns["similarity"][row] = similarities[index]
            if reason is DropReason.CONTAMINATED:
                number, image = decisions["evaluation"][index].tolist()
                columns["evaluation_image"][row] = evaluations[number][image]
    write_table(table_url(folder, name), pa.table(columns, schema=DEDUPE))
