"""Shared parts of signals with a model: actors that load it once, tars to read from, tables of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pairloom.pipelines.engine.run_shards import run_actors
from pairloom.pipelines.signals.models.batching import BatchFiller
from pairloom.schemas.data_set.manifest import ShardEntry, entry_of_table, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, write_table
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import Pixels, decode_rgb

SCORE_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("score", pa.float32()),  # classifier: 0..1; feature_head: the output of its last layer
    ]
)

BATCHES_IN_FLIGHT = 6  # an actor holds shards with so many batches of rows, so that batches stay full
MOST_SHARDS_AT_ONCE = 64

ModelInputs = dict[str, npt.NDArray[Any]]
"""Named input arrays of a model for one image or caption: [1, ...]."""

Scorer = Callable[[ShardEntry], None]
"""Writes the columns of one raw shard, its table last, which marks it as done. Several threads call it."""


def run_scorers(
    name: str,
    make_scorer: Callable[[int], Scorer],
    shards: Sequence[ShardEntry],
    num_done: int,
    batch_size: int,
) -> None:
    """Score raw shards with actors: one per GPU; without GPUs, max(1, num_cpus - 1).

    Each actor calls `make_scorer(num_threads)` once. It works on several shards at a time, so that small shards fill
    its batches too.
    """
    if not shards:
        return
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    num_actors = max(1, min(num_gpus or num_cpus - 1, len(shards)))
    make_worker = partial(make_scorer, max(1, num_cpus // num_actors))
    num_images = max(1, sum(shard.num_samples for shard in shards))
    at_once = min(MOST_SHARDS_AT_ONCE, 2 + BATCHES_IN_FLIGHT * batch_size * len(shards) // num_images)
    run_actors(
        f"signals {name}", make_worker, shards, num_done, num_gpus=1.0 if num_gpus else 0.0, shards_at_once=at_once
    )


def make_filler(batch_size: int, num_threads: int, device: str) -> BatchFiller:
    """A BatchFiller with `num_threads` threads for loading and computing; a GPU computes one batch at a time."""
    return BatchFiller(batch_size, num_threads, num_threads if device == "cpu" else 1)


def prepare_device() -> str:
    """The device of an actor's model, `cuda` or `cpu`. Limits torch to one thread per batch, so that results do
    not depend on the number of threads.
    """
    import torch

    torch.set_num_threads(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def open_tar(raw_folder: str, shard: ShardEntry, raw: pa.Table) -> Iterator[ShardReader | None]:
    """A reader of a raw shard's tar; None if all rows were dropped, because there may be no tar."""
    if not shard.num_samples:
        yield None
        return
    reader = ShardReader(tar_url(raw_folder, entry_of_table(raw, shard)))
    try:
        yield reader
    finally:
        reader.close()


def rows_with_images(raw: pa.Table) -> npt.NDArray[np.int64]:
    """The rows of a raw table with an image in the tar."""
    return np.flatnonzero(np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS)


def load_image(reader: ShardReader, offset: int, num_bytes: int, prepare: Callable[[Pixels], Any]) -> Any:
    """`prepare` of an image in a tar; None if it cannot be decoded, which no score rule keeps."""
    try:
        return prepare(decode_rgb(reader.read(offset, num_bytes)))
    except SampleError:
        return None


def write_scores(url: str, uids: pa.ChunkedArray, scores: npt.NDArray[np.float32]) -> None:
    """Write the table of one shard; nan becomes null."""
    column = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    write_table(url, pa.table([uids, column], schema=SCORE_SIGNALS))
