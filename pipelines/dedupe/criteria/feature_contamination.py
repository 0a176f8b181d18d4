"""Contamination by features: every image is compared with every image of an evaluation set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.kmeans import BLOCK_ROWS, ROW_MULTIPLE, Features, normalised

BLOCK_IMAGES = 4096  # images of the evaluation set per matrix product


def nearest_in_set(
    features_BD: npt.NDArray[Any], evaluation_ED: Features, threshold: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], Counter[int]]:
    """Per row: nearest evaluation image with a cosine above the threshold (-1: none), and the cosine.

    Also the number of rows above the threshold per evaluation image, nearest or not.
    """
    index = np.full(len(features_BD), -1, np.int32)
    cosine = np.zeros(len(features_BD), np.float32)
    counts: Counter[int] = Counter()
    for start in range(0, len(features_BD), BLOCK_ROWS):
        block = normalised(features_BD[start : start + BLOCK_ROWS])
        padded = np.pad(
            block, ((0, -len(block) % ROW_MULTIPLE), (0, 0))
        )  # the BLAS then uses the same code for all rows
        for first in range(0, len(evaluation_ED), BLOCK_IMAGES):
            similarity = (padded @ evaluation_ED[first : first + BLOCK_IMAGES].T)[: len(block)]
            near_rows = np.flatnonzero(similarity.max(axis=1) > threshold)  # few
            similarity = similarity[near_rows]
            counts.update((first + np.nonzero(similarity > threshold)[1]).tolist())
            best, value = similarity.argmax(axis=1), similarity.max(axis=1, initial=-1)
            rows = start + near_rows
            is_nearer = (index[rows] < 0) | (value > cosine[rows])
            index[rows[is_nearer]], cosine[rows[is_nearer]] = first + best[is_nearer], value[is_nearer]
    return index, cosine, counts
