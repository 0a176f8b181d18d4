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

The result depends neither on the order of the shards nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedupe.decide import REASONS, Decisions, decide
from pipelines.dedupe.evaluation_set import fingerprint_of
from pipelines.dedupe.near import RawShards
from pipelines.dedupe.semantic import FeatureShards
from pipelines.dedupe.slim import Slim, gather, read_slim, uid_texts
from pipelines.run_step import run_shards
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas.curate_recipe import CurateRecipe
from schemas.drop_reason import DropReason
from schemas.manifest import Manifest, ShardEntry, load_manifest, resolve, table_url
from schemas.recipe_io import settings_of, step_hash
from schemas.sample import DEDUPE, read_table, write_table

STEP = "dedupe"
VERSION = 2


@dataclass(frozen=True)
class ShardDecisions:
    """The decisions of one raw shard, on their way to its table."""

    name: str
    rows: npt.NDArray[np.int32]
    reason: npt.NDArray[np.int8]
    kept_instead: npt.NDArray[np.uint64]  # uid halves
    distance: npt.NDArray[np.int32]
    group: npt.NDArray[np.uint64]  # uid halves


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
    raw = load_manifest(raw_folder)
    num_own = len(raw.shards)
    slim, tables = _read(recipe, raw_folder, raw, signal_folders)
    semantic = recipe.dedupe.semantic
    names = tuple(shard.name for shard in raw.shards)
    features = FeatureShards(signal_folders[semantic.features], names) if semantic is not None else None
    decisions, figures = decide(slim, recipe.dedupe, RawShards(tables), features, num_own)
    _write(target, raw_folder, raw, slim, decisions)
    kept = np.bincount(slim.shard[decisions.reason == 0], minlength=num_own)[:num_own].tolist()
    entries = [
        ShardEntry(shard.name, shard.num_rows, num_kept, num_bytes=0)
        for shard, num_kept in zip(raw.shards, kept, strict=True)
    ]
    target.finish(entries, +decisions.counts(slim.shard < num_own), figures)
    return target.url


def _read(
    recipe: CurateRecipe, raw_folder: str, raw: Manifest, signal_folders: Mapping[str, str]
) -> tuple[Slim, tuple[str, ...]]:
    """The samples of our own shards and, numbered after them, of the earlier data sets; and the table of each shard."""
    settings = recipe.dedupe
    score_folder = signal_folders[settings.score_signal] if settings.score_signal else None
    names = [shard.name for shard in raw.shards]
    tables = [table_url(raw_folder, name) for name in names]
    read_own = partial(read_slim, raw_folder, score_folder, settings.prefer)
    parts = run_shards("dedupe: read", read_own, list(enumerate(names)))
    for path in settings.against:
        folder = resolve(path)
        names = [shard.name for shard in load_manifest(folder).shards]
        items = list(enumerate(names, start=len(tables)))
        parts += run_shards("dedupe: read earlier", partial(read_slim, folder, None, None), items)
        tables += [table_url(folder, name) for name in names]
    return gather(parts), tuple(tables)


def _write(target: StepFolder, raw_folder: str, raw: Manifest, slim: Slim, decisions: Decisions) -> None:
    """Write the table of every shard that has none yet, one Ray task a shard."""
    todo = set(missing_tables(target.url, [shard.name for shard in raw.shards]))
    order = np.lexsort((slim.row, slim.shard))
    edges = np.searchsorted(slim.shard[order], np.arange(len(raw.shards) + 1))
    items = []
    for place, shard in enumerate(raw.shards):
        if shard.name in todo:
            mine = order[edges[place] : edges[place + 1]]
            items.append(
                ShardDecisions(
                    shard.name,
                    slim.row[mine],
                    decisions.reason[mine],
                    slim.uid[decisions.kept_instead[mine]],
                    decisions.distance[mine],
                    slim.uid[decisions.group[mine]],
                )
            )
    run_shards("dedupe: write", partial(write_shard, raw_folder, target.url), items, len(raw.shards) - len(items))


def write_shard(raw_folder: str, folder: str, shard: ShardDecisions) -> None:
    """Write the decisions of one raw shard; rows without an image are null."""
    uids = read_table(table_url(raw_folder, shard.name), ["uid"])["uid"]
    columns: dict[str, list[Any]] = {name: [None] * len(uids) for name in DEDUPE.names}
    columns["uid"] = uids.to_pylist()
    kept_instead, groups = uid_texts(shard.kept_instead), uid_texts(shard.group)
    for place, row in enumerate(shard.rows.tolist()):
        columns["duplicate_group"][row] = groups[place]
        reason = REASONS[shard.reason[place]]
        if reason is not None:
            columns["drop_reason"][row] = reason.value
            if reason not in (DropReason.CONTAMINATED, DropReason.PLACEHOLDER):  # nothing is kept instead
                columns["duplicate_of"][row] = kept_instead[place]
            if reason is not DropReason.SEMANTIC_DUPLICATE:  # which has a cosine, no bits
                columns["distance"][row] = int(shard.distance[place])
    write_table(table_url(folder, shard.name), pa.table(columns, schema=DEDUPE))
