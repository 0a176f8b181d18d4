"""feature_head: a small network on the image features of a clip signal, such as LAION's aesthetic predictors.

The head is a safetensors file of linear layers (`<name>.weight` [out, in], `<name>.bias` [out]; sorted by the numbers
in the names), with a ReLU between them only if the file's metadata has `activation: relu`; LAION's heads have none. Or
it is an ONNX file with features [B, D] as input. The last layer has one output, the score, or two logits, whose second
probability is the score. No image is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.signals.clip import IMAGE_FEATURES, features_url
from pairloom.pipelines.signals.models.actors import rows_with_images, write_scores
from pairloom.pipelines.signals.models.onnx import OnnxFile, is_onnx
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.tables import check_joined, read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import read_array
from pairloom.schemas.storage.digests import content_of

VERSION = 2
BLOCK = 256  # images per forward pass
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadJob:
    """The arguments of the tasks."""

    name: str
    raw_folder: str
    features_folder: str
    folder: str
    head: str


class Network(Protocol):
    """The interface of both kinds of head."""

    num_features: int | None  # D, the width of its input; None: unknown

    def __call__(self, features_BD: Array) -> Array:
        """One score or two logits per image: [B, 1 or 2]."""


class OnnxHead:
    """An ONNX file, applied to [B, D] features."""

    def __init__(self, url: str) -> None:
        self._network = OnnxFile(url, "cpu")
        width = self._network.input_shape[-1]
        self.num_features = width if isinstance(width, int) else None

    def __call__(self, features_BD: Array) -> Array:
        """[B, outputs]."""
        return self._network(features_BD).reshape(len(features_BD), -1)


class LinearHead:
    """Linear layers, applied to [B, D] features."""

    def __init__(self, url: str) -> None:
        data = _read(url)
        try:
            tensors = load_safetensors(data)
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{url}: not a safetensors file: {error}") from error
        names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
        names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
        self._layers: list[tuple[Array, Array]] = []
        for name in names:
            weight = tensors[f"{name}.weight"].astype(np.float32)
            bias = tensors.get(f"{name}.bias", np.zeros(len(weight), np.float32)).astype(np.float32)
            self._layers.append((weight, bias))
        self._has_relu = _metadata(data).get("activation") == "relu"
        if not self._layers or len(self._layers[-1][1]) not in (1, 2):
            raise InputError(f"{url}: its last layer must have one or two outputs")
        self.num_features: int | None = int(self._layers[0][0].shape[1])

    def __call__(self, features_BD: Array) -> Array:
        """[B, outputs]. Uses torch, because some OpenBLAS kernels round a row differently by its index."""
        import torch
        from torch.nn import functional

        hidden = torch.from_numpy(features_BD)
        for index, (weight, bias) in enumerate(self._layers):
            hidden = functional.linear(hidden, torch.from_numpy(weight), torch.from_numpy(bias))
            if self._has_relu and index < len(self._layers) - 1:
                hidden = hidden.relu()
        outputs: Array = hidden.numpy()
        return outputs


class Head:
    """A small network on features. Raises InputError for a file that cannot be used."""

    def __init__(self, url: str) -> None:
        self._network: Network = OnnxHead(url) if is_onnx(url) else LinearHead(url)
        self._url = url

    def __call__(self, features_BD: Array, where: str = "the input") -> Array:
        """Scores [B], always computed in blocks of BLOCK images, so that they do not depend on the number of images."""
        width = self._network.num_features
        if width is not None and features_BD.shape[1] != width:
            raise InputError(f"{self._url}: takes {width} features, {where} has {features_BD.shape[1]}")
        scores = np.empty(len(features_BD), np.float32)
        for start in range(0, len(features_BD), BLOCK):
            block = features_BD[start : start + BLOCK]
            padded = np.concatenate([block, np.zeros((BLOCK - len(block), block.shape[1]), np.float32)])
            scores[start : start + BLOCK] = self._scores(self._network(padded))[: len(block)]
        return scores

    def _scores(self, logits: Array) -> Array:
        if logits.shape[1] == 1:
            return logits[:, 0]
        if logits.shape[1] != 2:
            raise InputError(f"{self._url}: must have one or two outputs per image, not {logits.shape[1]}")
        scores: Array = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        return scores


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error


def _metadata(data: bytes) -> dict[str, Any]:
    """The free-form metadata of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata


@lru_cache(maxsize=1)
def load_head(url: str) -> Head:
    """The head, read once per process."""
    return Head(url)


def score_shard(job: HeadJob, shard: ShardEntry) -> None:
    """Write the scores of one raw shard."""
    raw = read_table(table_url(job.raw_folder, shard.name), ["uid", "status"])
    signal = read_table(table_url(job.features_folder, shard.name), ["uid", "clip_score"])
    check_joined(raw, signal, f"{job.features_folder}: {shard.name}")
    features_BD = read_array(features_url(job.features_folder, shard.name, IMAGE_FEATURES)).astype(np.float32)
    scores = np.full(raw.num_rows, np.nan, np.float32)
    rows = rows_with_images(raw)
    rows = rows[np.asarray(signal["clip_score"].is_valid())[rows]]  # undecodable images have zero features
    scores[rows] = load_head(job.head)(features_BD[rows], job.features_folder)
    write_scores(table_url(job.folder, shard.name), raw["uid"], scores)


class HeadSignals(Signal):
    """score: a small network on the image features of another signal (aesthetics, NSFW)."""

    kind: Literal["feature_head"]
    name: Name
    features: Name
    """Name of a signal with image features, such as clip."""
    head: str
    """A safetensors or ONNX file."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "features": "its result is hashed",
        "head": "its content is hashed",
    }
    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("score",)

    def needs(self) -> tuple[str, ...]:
        """The signal with the features."""
        return (self.features,)

    def check(self, signals: Mapping[str, Signal]) -> None:
        """Check that the features exist. Raises ValueError."""
        if self.features not in signals or not signals[self.features].writes_features():
            raise ValueError(f"signals.{self.name}.features: {self.features} is not a clip signal")

    def inputs(self) -> dict[str, str]:
        """Fingerprint of the head."""
        return {"head": content_of(self.head, f"signals.{self.name}.head")}

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """One Ray task per shard."""
        features_folder = work.needed[self.features].folder
        job = HeadJob(self.name, work.raw_folder, features_folder, work.folder, self.head)
        run_shards(f"signals {self.name}", partial(score_shard, job), work.shards, work.num_done)
        return {}
