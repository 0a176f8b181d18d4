"""Image features of a clip signal, read from its files: fp16 [rows, D] per raw shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.engine.shuffle import Rows
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import read_array

Stored = npt.NDArray[np.float16]  # [images, D]


def read_features(folder: str, shards: Sequence[tuple[int, str]], images: Rows) -> Stored:
    """Features [images, D] of records with `shard` and `row`, in their order. `shards` are (index, name)."""
    parts = []
    positions = []
    for shard, name in shards:
        inside = np.flatnonzero(images["shard"] == shard)
        if len(inside):
            parts.append(features_of_rows(folder, name, images["row"][inside]))
            positions.append(inside)
    if not parts:
        return np.empty((0, 0), np.float16)
    features = np.empty((len(images), parts[0].shape[1]), parts[0].dtype)
    features[np.concatenate(positions)] = np.concatenate(parts)
    return features


def features_of_rows(folder: str, name: str, rows: npt.NDArray[np.integer]) -> Stored:
    """Features of the given rows of one shard."""
    url = storage.join(folder, f"{name}.image_features.npy")
    if storage.is_local(url):
        return np.asarray(np.load(storage.local_path(url), mmap_mode="r")[rows])
    return np.asarray(read_array(url)[rows])
