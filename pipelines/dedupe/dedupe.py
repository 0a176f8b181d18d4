"""Dedupe: which samples duplicate which, over the whole data set; the only global step.

An *image* is all samples with the same bytes, as received or as stored, or the same pixels.

- Samples of one image with the same caption (NFKC, case and spaces aside) are exact duplicates; one stays.
- Samples of one image with different captions all stay, unless `same_image_captions: keep_one`. With `exact: false`
  samples of one image are left alone.
- Images near one of an evaluation set (`decontaminate`), by hash or by features, go with all their samples, and nothing
  is kept instead; `distance` and `similarity` are those to `evaluation_image`, and the manifest tells what was hit.
- Images that look alike (pHash within `max_distance`, confirmed on the colour thumbnail) are perceptual duplicates,
  whatever their captions: copies are resized, encoded again and captioned anew as they spread. All samples of an image
  stay or go together.
- Placeholders (`placeholders`: one image and what is near it under many unlike captions from many domains) go whole.
- Images whose features agree are semantic duplicates (`semantic`), looked for among those that are left by then.
- Which one stays: the best of the preferred values (`prefer`), the largest as received (or the best scored), then the
  smallest uid. `duplicate_of` names a sample that is kept after all, or one that became a semantic duplicate itself:
  follow it. `distance` is 0 for exact duplicates and null for semantic ones, which have a `similarity`.
- `duplicate_group` joins everything that is linked, chains included: folds are cut by it.
- `against` names earlier raw folders. Their tables are read (never their images), what they hold comes before all of
  ours in the keep order, and nothing is decided about it: the new batch is deduplicated as if appended to them, by
  features too where they have them of the same model.

The result depends neither on the order of the shards nor on the number of workers. How the work is cut: `parts`.
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
from pairloom.pipelines.dedupe.decide import REASONS, Known
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.dedupe.links.colour_bounds import tell_colours
from pairloom.pipelines.dedupe.links.join_rounds import join_links
from pairloom.pipelines.dedupe.previous_data_sets import find_earlier, tell_what_is_not_compared
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
from pairloom.pipelines.dedupe.summary import Contamination, Figures
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
    """Where the decisions lie."""
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
    """Decide which samples duplicate which; returns the folder of the decisions."""
    target = dedupe_folder(recipe, raw_folder, signal_folders)
    return target.run_once(before_work, partial(_dedupe, recipe, raw_folder, signal_folders, target.url, limits))


def _dedupe(
    recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str], folder: str, limits: DedupeLimits
) -> StepResult:
    settings, raw = recipe.dedupe, load_manifest(raw_folder)
    earlier = find_earlier(recipe)
    not_compared = tell_what_is_not_compared(recipe, earlier)
    folders = [(_own_folders(recipe, raw_folder, signal_folders), raw)]
    folders += [(one.folders, one.manifest) for one in earlier]
    batches = cut_batches(folders, limits.batches)
    own = [batch for batch in batches if batch.shards[0][0] < len(raw.shards)]
    plan = make_plan(sum(manifest.num_samples for _, manifest in folders), batches, settings, limits)
    sets = [_read_set(recipe, rule) for rule in settings.decontaminate]
    compared = [signal_folders.get(settings.features_of(rule) or "") for rule in settings.decontaminate]
    urls = [table_url(folder.raw, shard.name) for folder, manifest in folders for shard in manifest.shards]
    with_features = np.array([batch.folders.features is not None for batch in batches])
    known = ray.put(Known(sets, compared, urls, len(raw.shards), with_features))
    job = Job(settings, plan, Tables(folder, plan), [known])
    figures, num_left = _decide(job, batches)
    if settings.semantic is not None:
        figures.groups = decide_semantic(job, batches, num_left)
    shards, counts = _write(job, own, folder, raw)
    if sets:
        table = figures.contamination_table(settings, sets)
        storage.put_bytes(storage.join(folder, "contamination.parquet"), table_bytes(table))
    details = figures.told(settings, sets) | not_compared
    return StepResult(shards, counts, details, scratch=(storage.join(folder, SPILL),))


def _own_folders(recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str]) -> Folders:
    settings = recipe.dedupe
    names = (settings.score_signal, settings.hashes, settings.semantic and settings.semantic.features)
    scores, hashes, features = (signal_folders[name] if name else None for name in names)
    return Folders(raw_folder, scores, hashes, features, recipe.keep_column or "")


def _read_set(recipe: CurateRecipe, rule: DecontaminateRecipe) -> EvaluationImages:
    """An evaluation set with what its rule compares."""
    images = read_evaluation_set(rule.path, rule.max_distance_256 is not None)
    name = recipe.dedupe.features_of(rule)
    if name is None:
        return images
    features = features_of_images(rule.path, str(recipe.signal(name).feature_model()))
    if len(features) != len(images.name):
        raise InputError(f"dedupe.decontaminate: {rule.path}: some of its images cannot be decoded any more")
    return replace(images, features=features)


def _decide(job: Job, batches: Sequence[Batch]) -> tuple[Figures, int]:
    """All decisions but the semantic ones; returns what the manifest tells, and how many images are left."""
    num_parts, num_searches = job.plan.num_parts, job.plan.search.num_tasks
    figures, num_left = Figures([Contamination() for _ in job.settings.decontaminate]), 0
    for alike in run_shards("dedupe: read", partial(read_batch, job), batches):
        figures += Figures([Contamination(by_features=counts) for counts in alike])
    if num_parts > 1:
        if job.plan.search.colour_limit is not None:
            run_shards("dedupe: search", partial(search_part, job), range(num_searches))
            run_shards("dedupe: colours", partial(tell_colours, job.tables.colours), range(job.tables.join.num_parts))
        run_shards("dedupe: link", partial(link_part, job), range(num_searches + num_parts))
        largest = join_links(job.tables.join, job.tables.roots)
        if largest > job.plan.limits.rows_per_part:
            logger.warning("dedupe: one task decides about %d hashes that are linked; give it more memory", largest)
        run_shards("dedupe: move", partial(move_part, job), range(num_parts))
    for of_part, left in run_shards("dedupe: decide", partial(decide_part, job), range(num_parts)):
        figures, num_left = figures + of_part, num_left + left
    return figures, num_left


def _write(job: Job, batches: Sequence[Batch], folder: str, raw: Manifest) -> tuple[list[ShardEntry], Counter[str]]:
    """Write the table of every shard that has none yet; returns the manifest's entries and counts of drop reasons."""
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
    """Write the shards of one batch; returns how often each reason was given: [shards, reasons]."""
    decisions = job.tables.decisions.read(batch.index)
    decisions = decisions[np.lexsort((decisions["row"], decisions["shard"]))]
    missing = set(missing_tables(folder, [name for _, name in batch.shards]))
    edges = np.searchsorted(decisions["shard"], [place for place, _ in batch.shards] + [batch.shards[-1][0] + 1])
    counts = np.zeros((len(batch.shards), len(REASONS)), np.int64)
    evaluations = _evaluation_names(job)
    for number, (_, name) in enumerate(batch.shards):
        mine = decisions[edges[number] : edges[number + 1]]
        counts[number] = np.bincount(mine["reason"], minlength=len(REASONS))
        if name in missing:
            write_shard(batch.folders.raw, folder, name, mine, evaluations)
    return counts


def _evaluation_names(job: Job) -> list[list[str]]:
    """What each evaluation image is called in the tables, set by set."""
    known: Known = ray.get(job.known[0])
    rules = zip(job.settings.decontaminate, known.sets, strict=True)
    return [[f"{rule.path}: {name}" for name in images.name] for rule, images in rules]


def write_shard(raw_folder: str, folder: str, name: str, decisions: Rows, evaluations: list[list[str]]) -> None:
    """Write the decisions of one raw shard; rows without an image are null."""
    uids = read_table(table_url(raw_folder, name), ["uid"])["uid"]
    columns: dict[str, list[Any]] = {column: [None] * len(uids) for column in DEDUPE.names}
    columns["uid"] = uids.to_pylist()
    kept_instead, groups = uid_texts(decisions["kept_instead"]), uid_texts(decisions["group"])
    reasons, distances = decisions["reason"].tolist(), decisions["distance"].tolist()
    similarities = decisions["similarity"].tolist()
    for place, row in enumerate(decisions["row"].tolist()):
        columns["duplicate_group"][row] = groups[place]
        reason = REASONS[reasons[place]]
        if reason is not None:
            columns["drop_reason"][row] = reason.value
            if reason not in (DropReason.CONTAMINATED, DropReason.PLACEHOLDER):  # nothing is kept instead
                columns["duplicate_of"][row] = kept_instead[place]
            if distances[place] >= 0:
                columns["distance"][row] = distances[place]
            if not np.isnan(similarities[place]):
                columns["similarity"][row] = similarities[place]
            if reason is DropReason.CONTAMINATED:
                number, image = decisions["evaluation"][place].tolist()
                columns["evaluation_image"][row] = evaluations[number][image]
    write_table(table_url(folder, name), pa.table(columns, schema=DEDUPE))
