"""clip: image and text features (fp16) and clip_score, their cosine, of every sample with an image.

Out of fold: with n models, model k scores the samples of fold k, on which it was not trained. The fold is a function of
the duplicate group, so that a model never scores near-duplicates of its own training samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pairloom.pipelines.signals.models.actors import (
    ModelInputs,
    load_image,
    make_filler,
    open_tar,
    prepare_device,
    run_scorers,
)
from pairloom.pipelines.signals.models.batching import Lane, PendingRow, ShardRows
from pairloom.pipelines.signals.models.model_folder import check_held_out, model_fingerprint
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, check_joined, fold_of, read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import put_array

VERSION = 2
CLIP_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("clip_score", pa.float32()),  # cosine, -1..1
        pa.field("fold", pa.int32()),  # fold of the sample; 0 if one model scores all
    ]
)
IMAGE_FEATURES, TEXT_FEATURES = "image_features", "text_features"
_RAW_COLUMNS = ["uid", "caption", "status", "offset", "num_bytes"]


@dataclass(frozen=True)
class ClipJob:
    """The arguments of the actors."""

    name: str
    raw_folder: str
    dedupe_folder: str | None  # None: one model scores every sample
    folder: str
    models: tuple[str, ...]
    batch_size: int


def features_url(folder: str, shard_name: str, kind: str) -> str:
    """URL of a shard's features: fp16 [rows, D], zeros for rows without an image."""
    return storage.join(folder, f"{shard_name}.{kind}.npy")


class ClipSignals(Signal):
    """clip_score, image and text features of a Hugging Face folder, or out of fold of several folders."""

    kind: Literal["clip"]
    name: Name
    model: str | None = None
    """One model folder, which scores every sample."""
    models: tuple[str, ...] | None = None
    """One model folder per fold; model k scores fold k, on which it was not trained."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Images, or captions, per forward pass."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "model": "its content is hashed",
        "models": "its content is hashed",
        "batch_size": "changes speed only",
    }
    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("clip_score",)

    @model_validator(mode="after")
    def _one_of_model_and_models(self) -> ClipSignals:
        if (self.model is None) == (self.models is None):
            raise ValueError("give model (one folder) or models (one folder per fold), not both")
        if self.models is not None and len(self.models) < 2:
            raise ValueError("models: needs at least two folders, one per fold; for one folder use model")
        return self

    def model_folders(self) -> tuple[str, ...]:
        """The model folders, one per fold, or the only one."""
        return self.models if self.models is not None else (str(self.model),)

    def writes_features(self) -> bool:
        """True."""
        return True

    def feature_model(self) -> str | None:
        """The folder, if one model scores all."""
        return self.model

    def reads_dedupe(self) -> bool:
        """Folds need duplicate groups."""
        return self.models is not None

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the models."""
        return {f"model {index}": model_fingerprint(folder) for index, folder in enumerate(self.model_folders())}

    def prepare(self) -> None:
        """Check that each model was trained without the fold that it scores. Raises InputError."""
        if self.models is not None:
            check_held_out(self.models)

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Score with actors that load the models once: one per GPU; without GPUs, max(1, num_cpus - 1)."""
        dedupe_folder = work.dedupe_folder if self.models is not None else None
        job = ClipJob(self.name, work.raw_folder, dedupe_folder, work.folder, self.model_folders(), self.batch_size)
        run_scorers(self.name, partial(ClipScorer, job), work.shards, work.num_done, self.batch_size)
        return {}


class ClipScorer:
    """Scores one raw shard per call; concurrent calls share the models and their batches."""

    def __init__(self, job: ClipJob, num_threads: int) -> None:
        from pairloom.pipelines.signals.models.clip import ClipModel

        device = prepare_device()
        self._job = job
        self._models = [ClipModel(folder, device) for folder in job.models]
        widths = {model.embedding_dim() for model in self._models}
        if len(widths) > 1:
            raise InputError(f"signals {job.name}: features of widths {sorted(widths)}; use models of one width")
        self._embedding_dim = widths.pop()
        self._filler = make_filler(job.batch_size, num_threads, device)
        self._image_lanes = [self._filler.lane(model.image_features) for model in self._models]
        self._text_lanes: dict[tuple[int, int], Lane] = {}  # by model and number of tokens

    def __call__(self, shard: ShardEntry) -> None:
        """Write the shard's features, then its table, which marks it as done."""
        raw = read_table(table_url(self._job.raw_folder, shard.name), _RAW_COLUMNS)
        folds = self._folds(raw, shard.name)
        with open_tar(self._job.raw_folder, shard, raw) as reader, self._filler.slot() as shard_rows:
            placed = [] if reader is None else self._submit(raw, reader, folds, shard_rows)
        self._write(raw, shard.name, folds, Scored.of(raw.num_rows, self._embedding_dim, placed))

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

    def _submit(
        self, raw: pa.Table, reader: ShardReader, folds: npt.NDArray[np.int32], shard_rows: ShardRows
    ) -> list[Placed]:
        captions, placed = raw["caption"].to_pylist(), []
        offsets, sizes = raw["offset"].to_pylist(), raw["num_bytes"].to_pylist()
        for fold, model in enumerate(self._models):
            rows = np.flatnonzero(folds == fold).tolist()
            texts = model.text_inputs([captions[row] or "" for row in rows]) if rows else []
            for row, text in zip(rows, texts, strict=True):
                load = partial(load_image, reader, offsets[row], sizes[row], model.image_inputs)
                image = shard_rows.load(self._image_lanes[fold], load)
                placed.append((row, image, shard_rows.add(self._text_lane(fold, text), text)))
        return placed

    def _text_lane(self, fold: int, inputs: ModelInputs) -> Lane:
        key = (fold, inputs["input_ids"].shape[1])
        if key not in self._text_lanes:
            self._text_lanes[key] = self._filler.lane(self._models[fold].text_features)
        return self._text_lanes[key]

    def _write(self, raw: pa.Table, shard_name: str, folds: npt.NDArray[np.int32], scored: Scored) -> None:
        for kind, features in ((IMAGE_FEATURES, scored.images), (TEXT_FEATURES, scored.texts)):
            put_array(features_url(self._job.folder, shard_name, kind), features)
        columns = [
            raw["uid"],
            pa.array(scored.scores, pa.float32(), mask=np.isnan(scored.scores)),
            pa.array(folds, pa.int32(), mask=folds < 0),
        ]
        write_table(table_url(self._job.folder, shard_name), pa.table(columns, schema=CLIP_SIGNALS))


Placed = tuple[int, Future[PendingRow | None], PendingRow]
"""Row, pending image features (None: the image cannot be decoded), pending text features."""


@dataclass(frozen=True)
class Scored:
    """Features and scores of one shard."""

    scores: npt.NDArray[np.float32]  # nan: no score
    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]

    @staticmethod
    def of(num_rows: int, embedding_dim: int, placed: Sequence[Placed]) -> Scored:
        """Wait for all features of a shard."""
        scored = Scored(
            np.full(num_rows, np.nan, np.float32),
            np.zeros((num_rows, embedding_dim), np.float16),
            np.zeros((num_rows, embedding_dim), np.float16),
        )
        for row, loaded, text in placed:
            image = loaded.result()
            if image is not None:
                image_D, text_D = image.values(), text.values()
                scored.images[row], scored.texts[row] = image_D, text_D
                scored.scores[row] = np.einsum("d,d->", image_D, text_D)
        return scored
