"""image_classifier: the probability of one label of a Hugging Face image classifier (NSFW, watermark).

The model is a folder that `AutoModelForImageClassification` loads, or an ONNX file with config.json and
preprocessor_config.json beside it. Several labels use a softmax; a single label or `problem_type:
multi_label_classification` uses a sigmoid.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pairloom.pipelines.signals.models.actors import (
    ModelInputs,
    load_image,
    make_filler,
    open_tar,
    prepare_device,
    rows_with_images,
    run_scorers,
    write_scores,
)
from pairloom.pipelines.signals.models.batching import PendingRow, ShardRows
from pairloom.pipelines.signals.models.model_folder import model_fingerprint, on_disk
from pairloom.pipelines.signals.models.onnx import OnnxFile, is_onnx
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.preprocess import load_preprocess
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

VERSION = 2
ONNX_NOTES = ("config.json", "preprocessor_config.json")  # beside an ONNX file: labels, and resize settings


@dataclass(frozen=True)
class ClassifierJob:
    """The arguments of the actors."""

    name: str
    raw_folder: str
    folder: str
    model: str
    label: str
    batch_size: int


class Logits(Protocol):
    """The interface of both kinds of model."""

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised images [B, 3, size, size] -> logits [B, labels]."""


class TransformersLogits:
    """A model folder of transformers on one device."""

    def __init__(self, folder: str, device: str) -> None:
        import torch
        from transformers import AutoModelForImageClassification

        self._device = device
        with tempfile.TemporaryDirectory() as scratch:
            try:
                model: Any = AutoModelForImageClassification.from_pretrained(
                    on_disk(folder, scratch), local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self._model = model.eval().to(device)

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [B, labels]."""
        import torch

        with torch.inference_mode():
            logits = self._model(pixel_values=torch.from_numpy(values).to(self._device)).logits
        found: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return found


class Classifier:
    """One label of a model on one device. Raises InputError for a model or label that cannot be used."""

    def __init__(self, model: str, label: str, device: str) -> None:
        folder = folder_of(model)
        self.preprocess = load_preprocess(folder)
        self._logits: Logits = OnnxFile(model, device) if is_onnx(model) else TransformersLogits(model, device)
        config = json.loads(storage.read_input(storage.join(folder, "config.json")))
        labels = {str(name): int(index) for index, name in config.get("id2label", {}).items()}
        labels = labels or {f"LABEL_{index}": index for index in range(2)}  # the default of transformers
        if label not in labels:
            raise InputError(f"{model}: has no label {label}; its labels are {', '.join(list(labels)[:20])}")
        self._index = labels[label]
        self._is_independent = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"

    def inputs(self, pixels: Pixels) -> ModelInputs:
        """The model inputs of one decoded image."""
        return self.preprocess.model_inputs([self.preprocess.resize(pixels)])

    def scores(self, inputs: Sequence[ModelInputs]) -> npt.NDArray[np.float32]:
        """Probability of the label for each image: [B]."""
        import torch

        logits_BL = torch.from_numpy(self._logits(np.concatenate([one["pixel_values"] for one in inputs])))
        shares_BL = logits_BL.sigmoid() if self._is_independent else logits_BL.softmax(dim=-1)
        scores: npt.NDArray[np.float32] = shares_BL[:, self._index].numpy()
        return scores


def folder_of(model: str) -> str:
    """The folder with config.json: the model folder, or the folder of an ONNX file."""
    return model.rpartition("/")[0] or "." if is_onnx(model) else model


def classifier_fingerprint(model: str) -> str:
    """Fingerprint of the files that change a classifier's output. Raises InputError if one is missing."""
    if not is_onnx(model):
        return model_fingerprint(model)
    urls = [model, *(storage.join(folder_of(model), name) for name in ONNX_NOTES)]
    for url in urls:
        if not storage.exists(url):
            raise InputError(f"{url}: no such file; an ONNX classifier needs {' and '.join(ONNX_NOTES)} beside it")
    return " ".join(sha256_of(url) for url in urls)


class ClassifierScorer:
    """Scores one raw shard per call; concurrent calls share the model and its batches."""

    def __init__(self, job: ClassifierJob, num_threads: int) -> None:
        device = prepare_device()
        self._job = job
        self._model = Classifier(job.model, job.label, device)
        self._filler = make_filler(job.batch_size, num_threads, device)
        self._lane = self._filler.lane(self._model.scores)

    def __call__(self, shard: ShardEntry) -> None:
        """Write the shard's scores."""
        raw = read_table(table_url(self._job.raw_folder, shard.name), ["uid", "status", "offset", "num_bytes"])
        with open_tar(self._job.raw_folder, shard, raw) as reader, self._filler.slot() as shard_rows:
            placed = {} if reader is None else self._submit(raw, reader, shard_rows)
        scores = np.full(raw.num_rows, np.nan, np.float32)
        for row, loaded in placed.items():
            pending = loaded.result()
            if pending is not None:
                scores[row] = pending.values()
        write_scores(table_url(self._job.folder, shard.name), raw["uid"], scores)

    def _submit(
        self, raw: pa.Table, reader: ShardReader, shard_rows: ShardRows
    ) -> dict[int, Future[PendingRow | None]]:
        offsets, sizes = raw["offset"].to_pylist(), raw["num_bytes"].to_pylist()
        return {
            row: shard_rows.load(self._lane, partial(load_image, reader, offsets[row], sizes[row], self._model.inputs))
            for row in rows_with_images(raw).tolist()
        }


class ClassifierSignals(Signal):
    """score: probability of one label of a Hugging Face image classifier (NSFW, watermark), 0..1."""

    kind: Literal["image_classifier"]
    name: Name
    model: str
    """A Hugging Face model folder or an ONNX file."""
    label: str
    """The label, one of the model's `id2label`."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Images per forward pass."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "model": "its content is hashed",
        "batch_size": "changes speed only",
    }
    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("score",)

    def inputs(self) -> dict[str, str]:
        """Fingerprint of the model."""
        return {"model": classifier_fingerprint(self.model)}

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Score with actors that load the model once."""
        job = ClassifierJob(self.name, work.raw_folder, work.folder, self.model, self.label, self.batch_size)
        run_scorers(self.name, partial(ClassifierScorer, job), work.shards, work.num_done, self.batch_size)
        return {}
