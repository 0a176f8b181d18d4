"""What signals with a model share: actors that load it once and work on several shards, tars to read from, scores."""

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
        pa.field("score", pa.float32()),  # 0..1 of a classifier; of a feature_head whatever its last layer gives
    ]
)

BATCHES_IN_FLIGHT = 6  # the rows of the shards that an actor holds: enough to fill batches while finished shards leave
MOST_SHARDS_AT_ONCE = 64

ModelInputs = dict[str, npt.NDArray[Any]]
"""Named arrays that a model takes of one image or caption: [1, ...]."""

Scorer = Callable[[ShardEntry], None]
"""Writes the columns of one raw shard; the table last, which marks the shard as done. Called by several threads."""


def run_scorers(
    name: str,
    make_scorer: Callable[[int], Scorer],
    shards: Sequence[ShardEntry],
    num_done: int,
    batch_size: int,
) -> None:
    """Score raw shards with actors, one a GPU, else one a CPU but one; each calls `make_scorer(num_threads)` once.

    An actor works on so many shards at a time that small ones fill its batches, too.
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
    """Loads and computes in `num_threads` threads; a GPU computes one batch at a time."""
    return BatchFiller(batch_size, num_threads, num_threads if device == "cpu" else 1)


def prepare_device() -> str:
    """The device that an actor's model runs on. Each thread computes a batch of its own: results never depend on
    how many threads share a product.
    """
    import torch

    torch.set_num_threads(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def open_tar(raw_folder: str, shard: ShardEntry, raw: pa.Table) -> Iterator[ShardReader | None]:
    """The tar that the rows of a raw shard's table lie in; None where all were dropped, for there may be no tar."""
    if not shard.num_samples:
        yield None
        return
    reader = ShardReader(tar_url(raw_folder, entry_of_table(raw, shard)))
    try:
        yield reader
    finally:
        reader.close()


def rows_with_images(raw: pa.Table) -> npt.NDArray[np.int64]:
    """The rows of a raw table that have an image in the tar."""
    return np.flatnonzero(np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS)


def load_image(reader: ShardReader, offset: int, num_bytes: int, prepare: Callable[[Pixels], Any]) -> Any:
    """What `prepare` makes of an image in a tar; None where it cannot be decoded: no score rule lets it pass."""
    try:
        return prepare(decode_rgb(reader.read(offset, num_bytes)))
    except SampleError:
        return None


def write_scores(url: str, uids: pa.ChunkedArray, scores: npt.NDArray[np.float32]) -> None:
    """Write the table of one shard; nan becomes null."""
    column = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    write_table(url, pa.table([uids, column], schema=SCORE_SIGNALS))
