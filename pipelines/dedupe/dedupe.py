"""Dedupe: which samples duplicate which, over the whole data set; the only global step.

An *image* is all samples with the same bytes, as received or as stored.

- Samples of one image with the same caption (NFKC, case and spaces aside) are exact duplicates; one stays.
- Samples of one image with different captions all stay, unless `same_image_captions: keep_one`.
- Images that look alike (pHash within `max_distance`, confirmed on the colour thumbnail) are perceptual duplicates,
  whatever their captions: copies are resized, encoded again and captioned anew as they spread. All samples of an image
  stay or go together.
- Which one stays: the largest as received (or the best scored), then the smallest uid. `duplicate_of` names a sample
  that is kept after all; `distance` is 0 for exact duplicates.
- `duplicate_group` joins everything that is linked, chains included: folds are cut by it.

The result depends neither on the order of the shards nor on the number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pipelines.dedupe.components import Indices, connect
from pipelines.dedupe.exact import best_of, best_of_captions, equal_images
from pipelines.dedupe.greedy import Block, Candidates, Walked, blocks_of, candidates_of, walk
from pipelines.dedupe.perceptual import Hashes, Pairs, Slice, cut, even_distance, join_pairs, plan_tables, search
from pipelines.dedupe.slim import THUMBNAIL_BYTES, Slim, gather, read_slim, read_thumbnails, uid_texts
from pipelines.run_step import run_shards
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas.curate_recipe import CurateRecipe, DedupeRecipe, PerceptualRecipe
from schemas.drop_reason import DropReason
from schemas.manifest import Manifest, ShardEntry, count_reasons, load_manifest, table_url
from schemas.recipe_io import settings_of, step_hash
from schemas.sample import DEDUPE, read_table, write_table

STEP = "dedupe"
VERSION = 1
NUM_LARGEST = 10  # groups that the manifest names
GIANT_GROUP = 1000  # samples; a component this large joins things that only a chain links

REASONS = (None, DropReason.EXACT_DUPLICATE, DropReason.CAPTION_OF_KEPT_IMAGE, DropReason.PERCEPTUAL_DUPLICATE)
EXACT, CAPTION, PERCEPTUAL = 1, 2, 3  # places in REASONS


@dataclass
class Decisions:
    """One entry a sample with an image, in the order of the uids."""

    reason: npt.NDArray[np.int8]  # place in REASONS
    kept_instead: Indices  # the sample itself where it is kept
    distance: npt.NDArray[np.int32]
    group: Indices  # smallest sample of its component


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
    settings = settings_of(recipe.dedupe, exclude={"name", "score_signal"})
    result = step_hash(STEP, VERSION, settings, parents)
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
    score_folder = signal_folders[recipe.dedupe.score_signal] if recipe.dedupe.score_signal else None
    items = [(place, shard.name) for place, shard in enumerate(raw.shards)]
    slim = gather(run_shards("dedupe: read", partial(read_slim, raw_folder, score_folder), items))
    decisions, details = decide(slim, recipe.dedupe, raw_folder, raw)
    _write(target, raw_folder, raw, slim, decisions)
    counts = Counter(REASONS[code].value for code in decisions.reason.tolist() if REASONS[code])  # type: ignore[union-attr]
    kept = np.bincount(slim.shard[decisions.reason == 0], minlength=len(raw.shards))
    entries = [
        ShardEntry(shard.name, shard.num_rows, int(kept[place]), num_bytes=0) for place, shard in enumerate(raw.shards)
    ]
    target.finish(entries, counts, details)
    return target.url


def decide(slim: Slim, settings: DedupeRecipe, raw_folder: str, raw: Manifest) -> tuple[Decisions, dict[str, object]]:
    """Decisions over all samples, and what the manifest tells about them."""
    rows = np.arange(slim.num_rows)
    ranks = keep_ranks(slim, settings)
    image_of = equal_images(slim)  # by its first row
    best_row = best_of(image_of, ranks)
    decisions = Decisions(np.zeros(slim.num_rows, np.int8), rows.copy(), np.zeros(slim.num_rows, np.int32), image_of)
    if settings.exact:
        best_caption = best_of_captions(image_of, slim.caption, ranks)
        if settings.same_image_captions == "keep_one":
            _drop(decisions, np.flatnonzero(best_row != rows), CAPTION, best_row)
        _drop(decisions, np.flatnonzero(best_caption != rows), EXACT, best_caption)
        if settings.same_image_captions == "keep_one":
            decisions.kept_instead = best_row.copy()
    num_flat = num_flat_dropped = 0
    if settings.perceptual is not None:
        best = np.flatnonzero((best_row == rows) & slim.has_phash)  # one row an image
        best = best[np.argsort(ranks[best])]
        near, distance, root, flat = near_duplicates(slim, best, settings.perceptual, raw_folder, raw)
        num_flat, num_flat_dropped = int(flat.sum()), int((flat & (near >= 0)).sum())
        _drop_near(decisions, best, near, distance, best_row)
        decisions.group = connect(slim.num_rows, np.concatenate([rows, best]), np.concatenate([image_of, best[root]]))
    details = _details(slim, decisions, image_of)
    return decisions, {**details, "num_flat_candidates": num_flat, "num_flat_duplicates": num_flat_dropped}


def keep_ranks(slim: Slim, settings: DedupeRecipe) -> Indices:
    """Place of each sample in the keep order: 0 is kept before all others."""
    smallest_uid = np.arange(slim.num_rows)
    score = np.where(np.isnan(slim.score), -np.inf, slim.score)
    orders = {
        "largest": (smallest_uid, -slim.area),
        "highest_score": (smallest_uid, -slim.area, -score),
        "smallest_uid": (smallest_uid,),
    }
    ranks = np.empty(slim.num_rows, np.int64)
    ranks[np.lexsort(orders[settings.keep])] = np.arange(slim.num_rows)
    return ranks


def _drop(decisions: Decisions, rows: Indices, reason: int, kept_instead: Indices) -> None:
    decisions.reason[rows] = reason
    decisions.kept_instead[rows] = kept_instead[rows]


def _drop_near(
    decisions: Decisions, best: Indices, near: Indices, distance: npt.NDArray[np.int32], best_row: Indices
) -> None:
    """Drop the images that have a kept one near: `near` and `distance` are those of `best`, one row an image."""
    kept_instead = np.arange(len(best_row))
    bits = np.zeros(len(best_row), np.int32)
    dropped = near >= 0
    kept_instead[best[dropped]] = best[near[dropped]]
    bits[best[dropped]] = distance[dropped]
    rows = np.flatnonzero(kept_instead[best_row] != best_row)  # samples of a dropped image
    decisions.kept_instead[rows] = kept_instead[best_row[rows]]
    decisions.distance[rows] = bits[best_row[rows]]
    decisions.reason[rows] = np.where(decisions.reason[rows] == 0, PERCEPTUAL, decisions.reason[rows])


def near_duplicates(
    slim: Slim, best: Indices, settings: PerceptualRecipe, raw_folder: str, raw: Manifest
) -> tuple[Indices, npt.NDArray[np.int32], Indices, npt.NDArray[np.bool_]]:
    """For images in keep order, as places among them: the one kept instead (-1), its distance, root, is flat."""
    near, root = np.full(len(best), -1), np.arange(len(best))
    distance, flat = np.zeros(len(best), np.int32), np.zeros(len(best), bool)
    hashes, hash_of = np.unique(slim.phash[best], return_inverse=True)
    candidates = candidates_of(hash_of, len(hashes), all_pairs(hashes, settings.max_distance))
    thumbnails = _thumbnails(slim, best[candidates.members], raw_folder, raw)
    for places, walked in _walk_blocks(candidates, thumbnails, settings.max_colour_difference):
        members = candidates.members[places]
        dropped = walked.kept_instead >= 0
        near[members[dropped]] = members[walked.kept_instead[dropped]]
        distance[members], root[members], flat[members] = walked.distance, members[walked.root], walked.is_flat
    return near, distance, root, flat


def all_pairs(hashes: Hashes, max_distance: int) -> Pairs:
    """All pairs of unique hashes within `max_distance`, one Ray task a slice of the search."""
    radius = even_distance(hashes, max_distance)
    if radius == 0 or len(hashes) < 2:
        return join_pairs([])
    masks = plan_tables(len(hashes), radius)
    shared = [ray.put(hashes)]  # in a list, so that Ray passes the reference and not a copy with each task
    found = run_shards("dedupe: pairs", partial(_search, shared, masks, radius), cut(len(hashes), len(masks)))
    return join_pairs(found)


def _search(shared: list[Any], masks: Hashes, radius: int, part: Slice) -> Pairs:
    return search(ray.get(shared[0]), masks, radius, part)


def _thumbnails(slim: Slim, samples: Indices, raw_folder: str, raw: Manifest) -> npt.NDArray[np.uint8]:
    """Thumbnails of some samples, in their order; each shard is read once."""
    order = np.lexsort((slim.row[samples], slim.shard[samples]))
    shards, starts = np.unique(slim.shard[samples][order], return_index=True)
    rows = np.split(slim.row[samples][order], starts[1:])
    items = [(raw.shards[shard].name, part) for shard, part in zip(shards, rows, strict=True)] if len(shards) else []
    thumbnails = np.empty((len(samples), THUMBNAIL_BYTES), np.uint8)
    if items:
        thumbnails[order] = np.concatenate(
            run_shards("dedupe: thumbnails", partial(read_thumbnails, raw_folder), items)
        )
    return thumbnails


def _walk_blocks(
    candidates: Candidates, thumbnails: npt.NDArray[np.uint8], max_colour_difference: float
) -> list[tuple[Indices, Walked]]:
    """Walk every block, one Ray task each."""
    places, blocks = [], []
    for members, hash_of, pairs in blocks_of(candidates):
        places.append(members)
        blocks.append(Block(hash_of, pairs, thumbnails[members]))
    walked = run_shards("dedupe: confirm", partial(walk, max_colour_difference), blocks)
    return list(zip(places, walked, strict=True))


def _details(slim: Slim, decisions: Decisions, image_of: Indices) -> dict[str, object]:
    """Figures for the manifest: numbers of images and groups, and the largest of them by name."""
    group_sizes = np.bincount(decisions.group, minlength=1)
    image_sizes = np.bincount(image_of, minlength=1)
    return {
        "num_images": int((image_sizes > 0).sum()),
        "num_groups": int((group_sizes > 1).sum()),
        "num_giant_groups": int((group_sizes >= GIANT_GROUP).sum()),
        "largest_groups": _largest(slim, group_sizes),
        "most_repeated_images": _largest(slim, image_sizes),  # placeholders show here
    }


def _largest(slim: Slim, sizes: Indices) -> list[dict[str, object]]:
    order = np.lexsort((np.arange(len(sizes)), -sizes))[:NUM_LARGEST]
    order = order[sizes[order] > 1]
    return [
        {"uid": uid, "num_samples": int(size)}
        for uid, size in zip(uid_texts(slim.uid[order]), sizes[order], strict=True)
    ]


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


def write_shard(raw_folder: str, folder: str, shard: ShardDecisions) -> Counter[str]:
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
            columns["duplicate_of"][row] = kept_instead[place]
            columns["distance"][row] = int(shard.distance[place])
    table = pa.table(columns, schema=DEDUPE)
    write_table(table_url(folder, shard.name), table)
    return count_reasons(table["drop_reason"])
