"""image_classifier: the probability that a Hugging Face image classifier gives one of its labels (NSFW, watermark).

Any folder that `AutoModelForImageClassification` loads, with its own preprocessor_config.json. A model of several
labels is read with softmax, one of a single label or `problem_type: multi_label_classification` with a sigmoid.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForImageClassification

from pipelines.signals.clip_model import on_disk
from pipelines.signals.scorer import (
    BatchedImages,
    open_tar,
    prepare_device,
    rows_with_images,
    run_scorers,
    write_scores,
)
from schemas.errors import InputError
from schemas.image_decode import Pixels
from schemas.manifest import ShardEntry, table_url
from schemas.preprocess import load_preprocess
from schemas.sample import read_table

VERSION = 1


@dataclass(frozen=True)
class ClassifierJob:
    """What the actors need to know."""

    name: str
    raw_folder: str
    folder: str
    model: str
    label: str
    batch_size: int


class Classifier:
    """One label of a model on one device. Raises InputError for a folder or label that cannot be used."""

    def __init__(self, folder: str, label: str, device: str) -> None:
        self.preprocess = load_preprocess(folder)
        self._device = device
        with tempfile.TemporaryDirectory() as scratch:
            try:
                model: Any = AutoModelForImageClassification.from_pretrained(
                    on_disk(folder, scratch), local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        labels = {str(name): int(index) for index, name in model.config.id2label.items()}
        if label not in labels:
            raise InputError(f"{folder}: has no label {label}; its labels are {', '.join(list(labels)[:20])}")
        self._index = labels[label]
        self._is_independent = len(labels) == 1 or model.config.problem_type == "multi_label_classification"
        self._model = model.eval().to(device)

    @torch.inference_mode()
    def scores(self, pixels: list[Pixels]) -> npt.NDArray[np.float32]:
        """Probability of the label for images that `preprocess.resize` has resized: [B]."""
        values = torch.from_numpy(self.preprocess.normalise(np.stack(pixels))).to(self._device)
        logits_BL = self._model(pixel_values=values).logits.float()
        shares_BL = logits_BL.sigmoid() if self._is_independent else logits_BL.softmax(dim=-1)
        scores: npt.NDArray[np.float32] = shares_BL[:, self._index].cpu().numpy()
        return scores


class ClassifierScorer:
    """Scores one raw shard a call; holds the model."""

    def __init__(self, job: ClassifierJob, num_threads: int) -> None:
        self._job = job
        self._model = Classifier(job.model, job.label, prepare_device(num_threads))
        self._images = BatchedImages(job.batch_size, num_threads)

    def __call__(self, shard: ShardEntry) -> None:
        """Write the shard's scores."""
        raw = read_table(table_url(self._job.raw_folder, shard.name), ["uid", "status", "offset", "num_bytes"])
        scores = np.full(raw.num_rows, np.nan, np.float32)
        with open_tar(self._job.raw_folder, shard, raw) as reader:
            for rows, pixels in self._images.batches(raw, reader, rows_with_images(raw), self._model.preprocess.resize):
                scores[rows] = self._model.scores(pixels)
        write_scores(table_url(self._job.folder, shard.name), raw["uid"], scores)


def classify_shards(job: ClassifierJob, shards: list[ShardEntry], num_done: int) -> None:
    """Score raw shards with actors that load the model once."""
    run_scorers(job.name, partial(ClassifierScorer, job), shards, num_done)
