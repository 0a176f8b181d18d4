"""Dedupe: which samples duplicate which, over the whole data set; the only global step.

An *image* is all samples with the same bytes, as received or as stored.

- Samples of one image with the same caption (NFKC, case and spaces aside) are exact duplicates; one stays.
- Samples of one image with different captions all stay, unless `same_image_captions: keep_one`. With `exact: false`
  samples of one image are left alone.
- Placeholders (`placeholders`: one image under many unlike captions from many domains) go whole.
- Images near one of an evaluation set (`decontaminate`) go with all their samples, and nothing is kept instead;
  `distance` is that to the evaluation image, and the manifest names what was hit.
- Images that look alike (pHash within `max_distance`, confirmed on the colour thumbnail) are perceptual duplicates,
  whatever their captions: copies are resized, encoded again and captioned anew as they spread. All samples of an image
  stay or go together.
- Images whose features agree are semantic duplicates (`semantic`), looked for among those that are left by then.
- Which one stays: the best of the preferred values (`prefer`), the largest as received (or the best scored), then the
  smallest uid. `duplicate_of` names a sample that is kept after all, or one that became a semantic duplicate itself:
  follow it. `distance` is 0 for exact duplicates and null for semantic ones.
- `duplicate_group` joins everything that is linked, chains included: folds are cut by it.
- `against` names earlier raw folders. Their tables are read (never their images), what they hold comes before all of
  ours in the keep order, and nothing is decided about it: the new batch is deduplicated as if appended to them.

The result depends neither on the order of the shards nor on the number of workers. How the work is cut: `parts`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines.dedupe.decide import REASONS, Known
from pipelines.dedupe.evaluation_set import fingerprint_of, read_evaluation_set
from pipelines.dedupe.figures import Contamination, Figures
from pipelines.dedupe.parts import (
    ROWS_PER_PART,
    Batch,
    Job,
    Tables,
    cut_batches,
    decide_part,
    join_links,
    link_part,
    make_plan,
    move_part,
    read_batch,
)
from pipelines.dedupe.semantic_rounds import decide_semantic
from pipelines.dedupe.slim import uid_texts
from pipelines.dedupe.spill import Rows
from pipelines.run_step import run_shards
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas import storage
from schemas.curate_recipe import CurateRecipe
from schemas.drop_reason import DropReason
from schemas.manifest import Manifest, ShardEntry, load_manifest, resolve, table_url
from schemas.recipe_io import settings_of, step_hash
from schemas.sample import DEDUPE, read_table, write_table

logger = logging.getLogger("pairloom")
STEP = "dedupe"
VERSION = 3


def dedupe_folder(recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str]) -> StepFolder:
    """Where the decisions lie."""
    parents = [load_manifest(raw_folder).hash()]
    if recipe.dedupe.score_signal is not None:
        parents.append(load_manifest(signal_folders[recipe.dedupe.score_signal]).hash())
    if recipe.dedupe.semantic is not None:
        parents.append(load_manifest(signal_folders[recipe.dedupe.semantic.features]).hash())
    parents += [load_manifest(resolve(path)).hash() for path in recipe.dedupe.against]
    settings = settings_of(recipe.dedupe, exclude={"name", "score_signal", "against"})
    inputs = {
        f"evaluation set {index}": fingerprint_of(rule.path) for index, rule in enumerate(recipe.dedupe.decontaminate)
    }
    result = step_hash(STEP, VERSION, settings, parents, inputs)
    return StepFolder(recipe.root, STEP, recipe.dedupe.name, result, tuple(parents))


def dedupe(
    recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str], before_work: BeforeWork = nothing
) -> str:
    """Decide which samples duplicate which; returns the folder of the decisions."""
    target = dedupe_folder(recipe, raw_folder, signal_folders)
    if target.is_complete():
        target.point_latest()
        return target.url
    before_work()
    settings, raw = recipe.dedupe, load_manifest(raw_folder)
    folders = [(raw_folder, raw)] + [(resolve(path), load_manifest(resolve(path))) for path in settings.against]
    score_folder = signal_folders[settings.score_signal] if settings.score_signal else None
    batches = cut_batches(folders, score_folder)
    own = [batch for batch in batches if batch.shards[0][0] < len(raw.shards)]
    plan = make_plan(sum(manifest.num_samples for _, manifest in folders), batches, len(own), settings)
    sets = [read_evaluation_set(rule.path) for rule in settings.decontaminate]
    urls = [table_url(folder, shard.name) for folder, manifest in folders for shard in manifest.shards]
    job = Job(settings, plan, Tables(target.url, plan), [ray.put(Known(sets, urls, len(raw.shards)))])
    figures, num_left = _decide(job, batches)
    if settings.semantic is not None:
        figures.groups = decide_semantic(job, own, signal_folders[settings.semantic.features], num_left)
    shards, counts = _write(job, own, target.url, raw)
    target.finish(shards, counts, figures.told(settings, sets))
    storage.remove(job.tables.folder)
    return target.url


def _decide(job: Job, batches: Sequence[Batch]) -> tuple[Figures, int]:
    """All decisions but the semantic ones; returns what the manifest tells, and how many images are left."""
    num_parts, num_searches = job.plan.num_parts, job.plan.search.num_tasks
    run_shards("dedupe: read", partial(read_batch, job), batches)
    if num_parts > 1:
        run_shards("dedupe: link", partial(link_part, job), range(num_searches + num_parts))
        (largest,) = run_shards("dedupe: join", partial(join_links, job), [0])
        if largest > ROWS_PER_PART:
            logger.warning("dedupe: one task decides about %d hashes that are linked; give it more memory", largest)
        run_shards("dedupe: move", partial(move_part, job), range(num_parts))
    figures, num_left = Figures([Contamination() for _ in job.settings.decontaminate]), 0
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
    for number, (_, name) in enumerate(batch.shards):
        mine = decisions[edges[number] : edges[number + 1]]
        counts[number] = np.bincount(mine["reason"], minlength=len(REASONS))
        if name in missing:
            write_shard(batch.raw_folder, folder, name, mine)
    return counts


def write_shard(raw_folder: str, folder: str, name: str, decisions: Rows) -> None:
    """Write the decisions of one raw shard; rows without an image are null."""
    uids = read_table(table_url(raw_folder, name), ["uid"])["uid"]
    columns: dict[str, list[Any]] = {column: [None] * len(uids) for column in DEDUPE.names}
    columns["uid"] = uids.to_pylist()
    kept_instead, groups = uid_texts(decisions["kept_instead"]), uid_texts(decisions["group"])
    reasons, distances = decisions["reason"].tolist(), decisions["distance"].tolist()
    for place, row in enumerate(decisions["row"].tolist()):
        columns["duplicate_group"][row] = groups[place]
        reason = REASONS[reasons[place]]
        if reason is not None:
            columns["drop_reason"][row] = reason.value
            if reason not in (DropReason.CONTAMINATED, DropReason.PLACEHOLDER):  # nothing is kept instead
                columns["duplicate_of"][row] = kept_instead[place]
            if reason is not DropReason.SEMANTIC_DUPLICATE:  # which has a cosine, no bits
                columns["distance"][row] = distances[place]
    write_table(table_url(folder, name), pa.table(columns, schema=DEDUPE))
