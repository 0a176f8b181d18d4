"""Which images are alike an image of an evaluation set by their features: every one is compared with every one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.kmeans import BLOCK_ROWS, ROW_MULTIPLE, Features, normalised

BLOCK_IMAGES = 4096  # of the evaluation set, compared at once


def nearest_in_set(
    features_BD: npt.NDArray[Any], evaluation_ED: Features, threshold: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], Counter[int]]:
    """For each row the nearest evaluation image whose cosine is above the threshold (-1: none), and that cosine.

    Also how many rows each evaluation image is alike, the nearest or not.
    """
    place = np.full(len(features_BD), -1, np.int32)
    cosine = np.zeros(len(features_BD), np.float32)
    counts: Counter[int] = Counter()
    for start in range(0, len(features_BD), BLOCK_ROWS):
        block = normalised(features_BD[start : start + BLOCK_ROWS])
        padded = np.pad(block, ((0, -len(block) % ROW_MULTIPLE), (0, 0)))  # every row goes through the same code
        for first in range(0, len(evaluation_ED), BLOCK_IMAGES):
            similarity = (padded @ evaluation_ED[first : first + BLOCK_IMAGES].T)[: len(block)]
            near = np.flatnonzero(similarity.max(axis=1) > threshold)  # few, so that only this looks at everything
            similarity = similarity[near]
            counts.update((first + np.nonzero(similarity > threshold)[1]).tolist())
            best, value = similarity.argmax(axis=1), similarity.max(axis=1, initial=-1)
            rows = start + near
            is_nearer = (place[rows] < 0) | (value > cosine[rows])
            place[rows[is_nearer]], cosine[rows[is_nearer]] = first + best[is_nearer], value[is_nearer]
    return place, cosine, counts
