"""Near-duplicate images over the whole data set, as Ray tasks: pairs of hashes, thumbnails of candidates, the walk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pipelines.dedupe.buckets import Hashes, plan_masks
from pipelines.dedupe.components import Indices
from pipelines.dedupe.greedy import Block, blocks_of, candidates_of, walk
from pipelines.dedupe.perceptual import Pairs, Slice, cut, even_distance, join_pairs, search
from pipelines.dedupe.slim import THUMBNAIL_BYTES, Slim, read_thumbnails
from pipelines.run_step import run_shards
from schemas.curate_recipe import PerceptualRecipe


@dataclass(frozen=True)
class RawShards:
    """Where thumbnails and captions are read from: the table of each shard, as `Slim.shard` numbers them."""

    tables: tuple[str, ...]  # URLs


@dataclass(frozen=True)
class Near:
    """For each image, as places among the images in keep order."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the one kept instead
    root: Indices  # first image of its component
    is_flat: npt.NDArray[np.bool_]  # told for candidates only


def near_duplicates(slim: Slim, images: Indices, settings: PerceptualRecipe, raw: RawShards) -> Near:
    """Near-duplicates among `images`: one sample of each image, in keep order."""
    near = Near(
        kept_instead=np.full(len(images), -1),
        distance=np.zeros(len(images), np.int32),
        root=np.arange(len(images)),
        is_flat=np.zeros(len(images), bool),
    )
    hashes, hash_of = np.unique(slim.phash[images], return_inverse=True)
    candidates = candidates_of(hash_of, len(hashes), all_pairs(hashes, settings.max_distance))
    thumbnails = thumbnails_of(slim, images[candidates.members], raw)
    places, blocks = [], []
    for inside, block_hash_of, pairs in blocks_of(candidates):
        places.append(candidates.members[inside])
        blocks.append(Block(block_hash_of, pairs, thumbnails[inside]))
    walked = run_shards("dedupe: confirm", partial(walk, settings.max_colour_difference), blocks)
    for members, result in zip(places, walked, strict=True):
        dropped = result.kept_instead >= 0
        near.kept_instead[members[dropped]] = members[result.kept_instead[dropped]]
        near.distance[members], near.root[members] = result.distance, members[result.root]
        near.is_flat[members] = result.is_flat
    return near


def all_pairs(hashes: Hashes, max_distance: int) -> Pairs:
    """All pairs of unique hashes within `max_distance`, one Ray task a slice of the search."""
    radius = even_distance(hashes, max_distance)
    if radius == 0 or len(hashes) < 2:
        return join_pairs([])
    masks = plan_masks(len(hashes), radius)
    shared = [ray.put(hashes)]  # in a list, so that a task takes the reference and not a copy
    found = run_shards("dedupe: pairs", partial(_search, shared, masks, radius), cut(len(hashes), len(masks)))
    return join_pairs(found)


def _search(shared: list[Any], masks: list[int], radius: int, part: Slice) -> Pairs:
    return search(ray.get(shared[0]), masks, radius, part)


def thumbnails_of(slim: Slim, samples: Indices, raw: RawShards) -> npt.NDArray[np.uint8]:
    """Thumbnails of some samples, in their order; each shard is read once."""
    thumbnails = np.empty((len(samples), THUMBNAIL_BYTES), np.uint8)
    if not len(samples):
        return thumbnails
    order = np.lexsort((slim.row[samples], slim.shard[samples]))
    shards, starts = np.unique(slim.shard[samples][order], return_index=True)
    rows = np.split(slim.row[samples][order], starts[1:])
    items = [(raw.tables[shard], part) for shard, part in zip(shards, rows, strict=True)]
    parts = run_shards("dedupe: thumbnails", read_thumbnails, items)
    thumbnails[order] = np.concatenate(parts)
    return thumbnails
