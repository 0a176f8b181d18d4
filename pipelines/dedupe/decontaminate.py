"""Which images are near an image of an evaluation set: they leave the training data with all their captions.

The hashes of a set are few: they are laid in tables in memory (one block of the bits is the key of each; hashes within
r bits agree in one of r + 1 blocks), and the data set's hashes are looked up there. What is found is
confirmed on the colour thumbnails. One evaluation image is named for each image dropped: the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.buckets import NUM_BITS, Hashes, popcount
from pipelines.dedupe.compiled import compiled
from pipelines.dedupe.components import Indices
from pipelines.dedupe.evaluation_set import EvaluationImages
from schemas.curate_recipe import DecontaminateRecipe

MAX_KEY_BITS = 16

Thumbnails = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hits:
    """Images that are near an evaluation image."""

    image: Indices  # place among the images that were asked about
    evaluation: Indices  # place in the set
    distance: npt.NDArray[np.int32]  # bits


def find_hits(hashes: Hashes, thumbnails: Thumbnails, images: EvaluationImages, rule: DecontaminateRecipe) -> Hits:
    """The images near an image of the set."""
    near = np.flatnonzero(near_any(hashes, np.unique(images.phash), rule.perceptual))
    max_sum = int(rule.max_colour_difference * images.thumbnail.shape[1])
    evaluation, distance = _confirm(
        hashes[near], thumbnails[near], images.phash, images.thumbnail, rule.perceptual, max_sum
    )
    hit = evaluation >= 0
    return Hits(near[hit], evaluation[hit], distance[hit])


def near_any(hashes: Hashes, others: Hashes, radius: int) -> npt.NDArray[np.bool_]:
    """For each hash whether any of `others` lies within `radius` bits."""
    is_near = np.zeros(len(hashes), np.bool_)
    num_blocks = max(radius + 1, NUM_BITS // MAX_KEY_BITS)
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    for start, stop in pairwise(edges[: radius + 2]):  # r differing bits leave one of r + 1 blocks untouched
        keys = (others >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << (stop - start)) + 1, dtype=np.uint64))
        _look_up(hashes, others[order], starts, np.uint64(start), radius, is_near)
    return is_near


@compiled
def _look_up(
    hashes: Hashes, others: Hashes, starts: Indices, shift: np.uint64, radius: int, is_near: npt.NDArray[np.bool_]
) -> None:
    """Mark the hashes that have one of `others` (sorted by the key at `shift`) within `radius` in their bucket."""
    last_key = np.uint64(len(starts) - 2)  # keys are all ones there
    for place in range(len(hashes)):
        if is_near[place]:
            continue
        key = (hashes[place] >> shift) & last_key
        for other in range(starts[key], starts[key + np.uint64(1)]):
            if popcount(hashes[place] ^ others[other]) <= radius:
                is_near[place] = True
                break


@compiled
def _confirm(
    hashes: Hashes, thumbnails: Thumbnails, others: Hashes, other_thumbnails: Thumbnails, radius: int, max_sum: int
) -> tuple[Indices, npt.NDArray[np.int32]]:
    """For each hash the nearest of `others` within `radius` and of nearly the same colours; -1 where there is none."""
    best = np.full(len(hashes), -1)
    distances = np.zeros(len(hashes), np.int32)
    for place in range(len(hashes)):
        nearest = np.int64(radius + 1)
        for other in range(len(others)):
            distance = popcount(hashes[place] ^ others[other])
            if distance < nearest:
                total = np.int64(0)
                for channel in range(thumbnails.shape[1]):
                    total += abs(np.int64(thumbnails[place, channel]) - np.int64(other_thumbnails[other, channel]))
                if total <= max_sum:
                    nearest, best[place], distances[place] = distance, other, distance
    return best, distances
