"""CLIP signals: image and text features (fp16) and clip_score, the cosine of both, of every sample with an image.

Out of fold: with n models, model k scores the samples of fold k, which it was not trained on; a fold is a function
of the duplicate group, so that near-duplicates of a training sample are never scored by the model that saw it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.signals.scorer import BatchedImages, open_tar, prepare_device, run_scorers
from schemas import storage
from schemas.errors import InputError
from schemas.manifest import ShardEntry, table_url
from schemas.sample import STATUS_SUCCESS, check_joined, fold_of, read_table, write_table

if TYPE_CHECKING:
    from pipelines.signals.clip_model import ClipModel

VERSION = 1
CLIP_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("clip_score", pa.float32()),  # cosine, -1..1
        pa.field("fold", pa.int32()),  # of the sample; 0 where one model scores all
    ]
)
IMAGE_FEATURES, TEXT_FEATURES = "image_features", "text_features"
_RAW_COLUMNS = ["uid", "caption", "status", "offset", "num_bytes"]


@dataclass(frozen=True)
class ClipJob:
    """What the actors need to know."""

    name: str
    raw_folder: str
    dedupe_folder: str | None  # None: one model scores every sample
    folder: str
    models: tuple[str, ...]
    batch_size: int


def features_url(folder: str, shard_name: str, kind: str) -> str:
    """URL of a shard's features: fp16 [rows, D], zeros for rows without an image."""
    return storage.join(folder, f"{shard_name}.{kind}.npy")


def score_shards(job: ClipJob, shards: Sequence[ShardEntry], num_done: int) -> None:
    """Score raw shards with actors that load the models once: one a GPU, else one a CPU but one."""
    run_scorers(job.name, partial(ClipScorer, job), shards, num_done)


class ClipScorer:
    """Scores one raw shard a call; holds the models."""

    def __init__(self, job: ClipJob, num_threads: int) -> None:
        from pipelines.signals.clip_model import ClipModel

        device = prepare_device(num_threads)
        self._job = job
        self._models = [ClipModel(folder, device) for folder in job.models]
        widths = {model.embedding_dim() for model in self._models}
        if len(widths) > 1:
            raise InputError(f"signals {job.name}: its models give features of different widths: {sorted(widths)}")
        self._embedding_dim = widths.pop()
        self._images = BatchedImages(job.batch_size, num_threads)

    def __call__(self, shard: ShardEntry) -> None:
        """Write the shard's features, then its table, which marks it as done."""
        raw = read_table(table_url(self._job.raw_folder, shard.name), _RAW_COLUMNS)
        folds = self._folds(raw, shard.name)
        scored = Scored(raw.num_rows, self._embedding_dim)
        with open_tar(self._job.raw_folder, shard, raw) as reader:
            for fold, model in enumerate(self._models):
                self._score_rows(raw, reader, np.flatnonzero(folds == fold), model, scored)
        self._write(raw, shard.name, folds, scored)

    def _folds(self, raw: pa.Table, shard_name: str) -> npt.NDArray[np.int32]:
        """The model that scores each row; -1 for rows without an image."""
        folds = np.where(np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS, 0, -1).astype(np.int32)
        if self._job.dedupe_folder is None:
            return folds
        dedupe = read_table(table_url(self._job.dedupe_folder, shard_name), ["uid", "duplicate_group"])
        check_joined(raw, dedupe, f"{self._job.dedupe_folder}: {shard_name}")
        groups, uids = dedupe["duplicate_group"].to_pylist(), dedupe["uid"].to_pylist()
        for row in np.flatnonzero(folds >= 0):
            folds[row] = fold_of(groups[row] or uids[row], len(self._models))
        return folds

    def _score_rows(
        self, raw: pa.Table, reader: Any, rows: npt.NDArray[np.int64], model: ClipModel, scored: Scored
    ) -> None:
        captions = raw["caption"].to_pylist()
        for batch_rows, pixels in self._images.batches(raw, reader, rows, model.preprocess.resize):
            images_BD = model.image_features(pixels)
            texts_BD = model.text_features([captions[row] or "" for row in batch_rows])
            scored.add(batch_rows, images_BD, texts_BD)

    def _write(self, raw: pa.Table, shard_name: str, folds: npt.NDArray[np.int32], scored: Scored) -> None:
        for kind, features in ((IMAGE_FEATURES, scored.images), (TEXT_FEATURES, scored.texts)):
            buffer = io.BytesIO()
            np.save(buffer, features)
            storage.put_bytes(features_url(self._job.folder, shard_name, kind), buffer.getvalue())
        columns = [
            raw["uid"],
            pa.array(scored.scores, pa.float32(), mask=np.isnan(scored.scores)),
            pa.array(folds, pa.int32(), mask=folds < 0),
        ]
        write_table(table_url(self._job.folder, shard_name), pa.table(columns, schema=CLIP_SIGNALS))


class Scored:
    """Features and scores of one shard as they come in."""

    def __init__(self, num_rows: int, embedding_dim: int) -> None:
        self.scores = np.full(num_rows, np.nan, np.float32)
        self.images = np.zeros((num_rows, embedding_dim), np.float16)
        self.texts = np.zeros((num_rows, embedding_dim), np.float16)

    def add(self, rows: Sequence[int], images_BD: npt.NDArray[np.float32], texts_BD: npt.NDArray[np.float32]) -> None:
        """Put the features and scores of a batch in their rows."""
        self.images[rows], self.texts[rows] = images_BD, texts_BD
        self.scores[rows] = np.einsum("bd,bd->b", images_BD, texts_BD)
