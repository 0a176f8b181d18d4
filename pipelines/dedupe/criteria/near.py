"""Near-duplicate images of one part of the data set: pairs of hashes, then the walk that confirms them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming256 import find_wide_pairs
from pairloom.pipelines.algorithms.hamming_pairs import Pairs, find_pairs
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.dedupe.criteria.greedy import Block, blocks_of, candidates_of, is_flat, walk
from pairloom.pipelines.dedupe.sample_records import Slim
from pairloom.schemas.recipes.dedupe import PerceptualRecipe


@dataclass(frozen=True)
class Near:
    """For each image, as places among the images in keep order."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the one kept instead
    root: Indices  # first image of its component
    is_flat: npt.NDArray[np.bool_]


def near_duplicates(slim: Slim, images: Indices, settings: PerceptualRecipe) -> Near:
    """Near-duplicates among `images`: one sample of each image that has the hashes compared, in keep order."""
    near = Near(
        kept_instead=np.full(len(images), -1),
        distance=np.zeros(len(images), np.int32),
        root=np.arange(len(images)),
        is_flat=is_flat(slim.thumbnail[images]),
    )
    hash_of, num_hashes, pairs_of_hashes = _search(slim, images, settings)
    candidates = candidates_of(hash_of, num_hashes, pairs_of_hashes)
    for inside, block_hash_of, pairs in blocks_of(candidates):
        members = candidates.members[inside]
        block = Block(block_hash_of, pairs, slim.thumbnail[images[members]], slim.phash256[images[members]])
        result = walk(settings.max_colour_difference, block, settings.max_distance_256)
        dropped = result.kept_instead >= 0
        near.kept_instead[members[dropped]] = members[result.kept_instead[dropped]]
        near.distance[members], near.root[members] = result.distance, members[result.root]
    return near


def _search(slim: Slim, images: Indices, settings: PerceptualRecipe) -> tuple[Indices, int, Pairs]:
    """The hash of each image by its place among distinct ones, how many those are, and which of them are near."""
    if settings.bits == 256:
        wide, hash_of = np.unique(slim.phash256[images], axis=0, return_inverse=True)
        return hash_of, len(wide), find_wide_pairs(wide, settings.max_distance)
    hashes, hash_of = np.unique(slim.phash[images], return_inverse=True)
    return hash_of, len(hashes), find_pairs(hashes, settings.max_distance)
