"""Near-duplicate images of one part of the data set: pairs of hashes, then the walk that confirms them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.components import Indices
from pipelines.dedupe.greedy import Block, blocks_of, candidates_of, walk
from pipelines.dedupe.perceptual import find_pairs
from pipelines.dedupe.slim import Slim
from schemas.curate_recipe import PerceptualRecipe


@dataclass(frozen=True)
class Near:
    """For each image, as places among the images in keep order."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the one kept instead
    root: Indices  # first image of its component
    is_flat: npt.NDArray[np.bool_]  # told for candidates only


def near_duplicates(slim: Slim, images: Indices, settings: PerceptualRecipe) -> Near:
    """Near-duplicates among `images`: one sample of each image, in keep order."""
    near = Near(
        kept_instead=np.full(len(images), -1),
        distance=np.zeros(len(images), np.int32),
        root=np.arange(len(images)),
        is_flat=np.zeros(len(images), bool),
    )
    hashes, hash_of = np.unique(slim.phash[images], return_inverse=True)
    candidates = candidates_of(hash_of, len(hashes), find_pairs(hashes, settings.max_distance))
    for inside, block_hash_of, pairs in blocks_of(candidates):
        members = candidates.members[inside]
        block = Block(block_hash_of, pairs, slim.thumbnail[images[members]])
        result = walk(settings.max_colour_difference, block)
        dropped = result.kept_instead >= 0
        near.kept_instead[members[dropped]] = members[result.kept_instead[dropped]]
        near.distance[members], near.root[members] = result.distance, members[result.root]
        near.is_flat[members] = result.is_flat
    return near
