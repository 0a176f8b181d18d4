"""Contamination by hashes: images near an image of an evaluation set are dropped with all their captions.

The hashes of a set are few: in-memory tables index them by blocks of bits (hashes within r bits agree in one of r + 1
blocks), and the hashes of the data set are looked up there. Pairs are confirmed on the colour thumbnails, and on
256-bit hashes if the rule says so. For features see feature_contamination.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import NUM_BITS, Hashes, popcount
from pairloom.pipelines.algorithms.hamming256 import distance256
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted
from pairloom.pipelines.dedupe.criteria.evaluation_set import EvaluationImages
from pairloom.pipelines.dedupe.sample_records import SampleRecords
from pairloom.schemas.recipes.dedupe import DecontaminateRecipe

MAX_KEY_BITS = 16

Thumbnails = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hits:
    """Near pairs of an image and an evaluation image, grouped by image."""

    image: Indices  # index into the images of the search
    evaluation: Indices  # index into the set
    distance: npt.NDArray[np.int32]  # bits

    def nearest(self) -> Hits:
        """One pair per image: the nearest evaluation image, the first among equals."""
        order = np.lexsort((self.evaluation, self.distance, self.image))
        _, first = np.unique(self.image[order], return_index=True)
        chosen = order[first]
        return Hits(self.image[chosen], self.evaluation[chosen], self.distance[chosen])


def find_hits(records: SampleRecords, images: Indices, evaluation: EvaluationImages, rule: DecontaminateRecipe) -> Hits:
    """All pairs of `images` (sample indices) and images of the set with near hashes and colours."""
    if rule.perceptual is None:
        none = np.empty(0, np.int64)
        return Hits(none, none, np.empty(0, np.int32))
    found = np.flatnonzero(has_near(records.phash[images], unique_sorted(evaluation.phash), rule.perceptual))
    chosen = images[found]
    max_sum = int(rule.max_colour_difference * evaluation.thumbnail.shape[1])
    image, other, distance = _confirm(
        records.phash[chosen],
        records.thumbnail[chosen],
        evaluation.phash,
        evaluation.thumbnail,
        rule.perceptual,
        max_sum,
    )
    if rule.max_distance_256 is not None and evaluation.phash256 is not None:
        distances = distance256(records.phash256[chosen[image]], evaluation.phash256[other])
        kept = records.has_phash256[chosen[image]] & (distances <= rule.max_distance_256)
        image, other, distance = image[kept], other[kept], distance[kept]
    return Hits(found[image], other, distance)


def has_near(hashes: Hashes, others: Hashes, radius: int) -> npt.NDArray[np.bool_]:
    """Per hash: whether any of `others` is within `radius` bits."""
    is_near = np.zeros(len(hashes), np.bool_)
    num_blocks = max(radius + 1, NUM_BITS // MAX_KEY_BITS)
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    for start, stop in pairwise(edges[: radius + 2]):  # with r different bits, one of r + 1 blocks is equal
        keys = (others >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << (stop - start)) + 1, dtype=np.uint64))
        _look_up(hashes, others[order], starts, np.uint64(start), radius, is_near)
    return is_near


@compiled
def _look_up(
    hashes: Hashes, others: Hashes, starts: Indices, shift: np.uint64, radius: int, is_near: npt.NDArray[np.bool_]
) -> None:
    """Mark hashes with one of `others` (sorted by the key at `shift`) within `radius` in their bucket."""
    last_key = np.uint64(len(starts) - 2)  # all bits of a key set
    for index in range(len(hashes)):
        if is_near[index]:
            continue
        key = (hashes[index] >> shift) & last_key
        for other in range(starts[key], starts[key + np.uint64(1)]):
            if popcount(hashes[index] ^ others[other]) <= radius:
                is_near[index] = True
                break


@compiled
def _confirm(
    hashes: Hashes, thumbnails: Thumbnails, others: Hashes, other_thumbnails: Thumbnails, radius: int, max_sum: int
) -> tuple[Indices, Indices, npt.NDArray[np.int32]]:
    """Pairs of a hash and one of `others` within `radius` and with near colours, and their distances."""
    found, num_found = np.empty((1024, 3), np.int64), 0
    for index in range(len(hashes)):
        for other in range(len(others)):
            distance = popcount(hashes[index] ^ others[other])
            if distance > radius:
                continue
            total = np.int64(0)
            for channel in range(thumbnails.shape[1]):
                total += abs(np.int64(thumbnails[index, channel]) - np.int64(other_thumbnails[other, channel]))
            if total <= max_sum:
                if num_found == len(found):
                    found = np.concatenate((found, found))
                found[num_found, 0], found[num_found, 1], found[num_found, 2] = index, other, distance
                num_found += 1
    pairs = found[:num_found]
    return pairs[:, 0].copy(), pairs[:, 1].copy(), pairs[:, 2].astype(np.int32)
