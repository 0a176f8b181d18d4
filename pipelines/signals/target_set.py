"""Image features of a target set: from a .npy or .npz file, or computed from images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import ray

from pairloom.pipelines.algorithms.kmeans import Features, normalised
from pairloom.pipelines.engine.run_shards import run_actors
from pairloom.pipelines.images.image_sets import Listed, cut_tasks, images_in, listed_images
from pairloom.pipelines.signals.models.actors import ModelInputs, prepare_device
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.storage.arrays import read_array

BATCH = 64
IMAGE_FEATURES = "image_features"  # name of the array in a .npz with several arrays


def target_features(path: str, model: str) -> Features:
    """Unit features [images, D] of a target set. Raises InputError if it has none."""
    if path.endswith((".npy", ".npz")):
        return normalised(_read(path))
    features = features_of_images(path, model)
    if not len(features):
        raise InputError(f"{path}: holds no images; use .npy or .npz features, a raw folder, tars or image files")
    return features


def features_of_images(path: str, model: str) -> Features:
    """Unit features [images, D] of all decodable images of a set, in the order of `read_evaluation_set`."""
    tasks = cut_tasks(listed_images(path))
    num_gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    arrays = run_actors("features of images", partial(TargetScorer, model), tasks, num_gpus=num_gpus)
    return normalised(np.concatenate(arrays if arrays else [np.empty((0, 1), np.float32)]))


def _read(url: str) -> Any:
    try:
        loaded: Any = read_array(url)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise InputError(f"{url}: not a .npy or .npz file: {error}") from error
    if not isinstance(loaded, np.ndarray):
        names = list(loaded)
        if len(names) != 1 and IMAGE_FEATURES not in names:
            raise InputError(f"{url}: its arrays are {', '.join(names)}; name one of them {IMAGE_FEATURES}")
        loaded = loaded[IMAGE_FEATURES if IMAGE_FEATURES in names else names[0]]
    if loaded.ndim != 2 or not len(loaded):
        raise InputError(f"{url}: has shape {loaded.shape}; save one array [images, features]")
    return loaded


class TargetScorer:
    """Computes image features of files; holds the model."""

    def __init__(self, model: str) -> None:
        from pairloom.pipelines.signals.models.clip import ClipModel

        self._model = ClipModel(model, prepare_device())

    def __call__(self, files: list[Listed]) -> Features:
        """Features [images, D], without images that cannot be decoded."""
        arrays = [self._model.image_features(inputs) for inputs in self._batches(files)]
        return np.concatenate(arrays) if arrays else np.zeros((0, self._model.embedding_dim()), np.float32)

    def _batches(self, files: list[Listed]) -> Iterator[list[ModelInputs]]:
        batch: list[ModelInputs] = []
        for _, data in images_in(files):
            try:
                batch.append(self._model.image_inputs(decode_rgb(data)))
            except SampleError:
                continue
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
