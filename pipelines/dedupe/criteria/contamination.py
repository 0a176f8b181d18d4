"""Which images are near an image of an evaluation set: they leave the training data with all their captions.

The hashes of a set are few: they are laid in tables in memory (one block of the bits is the key of each; hashes within
r bits agree in one of r + 1 blocks), and the data set's hashes are looked up there. What is found is confirmed on the
colour thumbnails, and on 256-bit hashes where that is asked for. By features: `alike`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import NUM_BITS, Hashes, popcount
from pairloom.pipelines.algorithms.hamming256 import wide_distance
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted
from pairloom.pipelines.dedupe.criteria.evaluation_set import EvaluationImages
from pairloom.pipelines.dedupe.sample_records import Slim
from pairloom.schemas.recipes.dedupe import DecontaminateRecipe

MAX_KEY_BITS = 16

Thumbnails = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hits:
    """Pairs of an image and an evaluation image that are near each other; all pairs of an image are together."""

    image: Indices  # place among the images that were asked about
    evaluation: Indices  # place in the set
    distance: npt.NDArray[np.int32]  # bits

    def nearest(self) -> Hits:
        """One pair an image: the nearest evaluation image, of several the first."""
        order = np.lexsort((self.evaluation, self.distance, self.image))
        _, first = np.unique(self.image[order], return_index=True)
        chosen = order[first]
        return Hits(self.image[chosen], self.evaluation[chosen], self.distance[chosen])


def find_hits(slim: Slim, images: Indices, evaluation: EvaluationImages, rule: DecontaminateRecipe) -> Hits:
    """All pairs of `images` (samples) and images of the set that are near by their hashes and colours."""
    if rule.perceptual is None:
        none = np.empty(0, np.int64)
        return Hits(none, none, np.empty(0, np.int32))
    near = np.flatnonzero(near_any(slim.phash[images], unique_sorted(evaluation.phash), rule.perceptual))
    chosen = images[near]
    max_sum = int(rule.max_colour_difference * evaluation.thumbnail.shape[1])
    image, place, distance = _confirm(
        slim.phash[chosen], slim.thumbnail[chosen], evaluation.phash, evaluation.thumbnail, rule.perceptual, max_sum
    )
    if rule.max_distance_256 is not None and evaluation.phash256 is not None:
        wide = wide_distance(slim.phash256[chosen[image]], evaluation.phash256[place])
        kept = slim.has_phash256[chosen[image]] & (wide <= rule.max_distance_256)
        image, place, distance = image[kept], place[kept], distance[kept]
    return Hits(near[image], place, distance)


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
) -> tuple[Indices, Indices, npt.NDArray[np.int32]]:
    """Pairs of a hash and one of `others` within `radius` and of nearly the same colours, with their distance."""
    found, num_found = np.empty((1024, 3), np.int64), 0
    for place in range(len(hashes)):
        for other in range(len(others)):
            distance = popcount(hashes[place] ^ others[other])
            if distance > radius:
                continue
            total = np.int64(0)
            for channel in range(thumbnails.shape[1]):
                total += abs(np.int64(thumbnails[place, channel]) - np.int64(other_thumbnails[other, channel]))
            if total <= max_sum:
                if num_found == len(found):
                    found = np.concatenate((found, found))
                found[num_found, 0], found[num_found, 1], found[num_found, 2] = place, other, distance
                num_found += 1
    pairs = found[:num_found]
    return pairs[:, 0].copy(), pairs[:, 1].copy(), pairs[:, 2].astype(np.int32)
