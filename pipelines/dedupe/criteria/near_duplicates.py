"""Near-duplicate images of one part of the data set: pairs of near hashes, then the greedy selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming256 import find_pairs256
from pairloom.pipelines.algorithms.hamming_pairs import Pairs, find_pairs
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.dedupe.criteria.greedy import Block, blocks_of, candidates_of, is_flat, select_greedily
from pairloom.pipelines.dedupe.sample_records import SampleRecords
from pairloom.schemas.recipes.dedupe import PerceptualRecipe


@dataclass(frozen=True)
class NearDuplicates:
    """Results per image, as positions among the images in keep order."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the image kept instead
    root: Indices  # first image of its component
    is_flat: npt.NDArray[np.bool_]


def find_near_duplicates(records: SampleRecords, images: Indices, settings: PerceptualRecipe) -> NearDuplicates:
    """Near-duplicates among `images`: the best sample of each image with the compared hashes, in keep order."""
    near = NearDuplicates(
        kept_instead=np.full(len(images), -1),
        distance=np.zeros(len(images), np.int32),
        root=np.arange(len(images)),
        is_flat=is_flat(records.thumbnail[images]),
    )
    hash_of, num_hashes, pairs_of_hashes = _search(records, images, settings)
    candidates = candidates_of(hash_of, num_hashes, pairs_of_hashes)
    for inside, block_hash_of, pairs in blocks_of(candidates):
        members = candidates.members[inside]
        block = Block(block_hash_of, pairs, records.thumbnail[images[members]], records.phash256[images[members]])
        result = select_greedily(settings.max_colour_difference, block, settings.max_distance_256)
        dropped = result.kept_instead >= 0
        near.kept_instead[members[dropped]] = members[result.kept_instead[dropped]]
        near.distance[members], near.root[members] = result.distance, members[result.root]
    return near


def _search(records: SampleRecords, images: Indices, settings: PerceptualRecipe) -> tuple[Indices, int, Pairs]:
    """Index of each image's hash among the unique hashes, their number, and the near pairs of them."""
    if settings.bits == 256:
        hashes256, hash_of = np.unique(records.phash256[images], axis=0, return_inverse=True)
        return hash_of, len(hashes256), find_pairs256(hashes256, settings.max_distance)
    hashes, hash_of = np.unique(records.phash[images], return_inverse=True)
    return hash_of, len(hashes), find_pairs(hashes, settings.max_distance)
