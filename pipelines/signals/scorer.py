"""What signals with a model share: actors that load it once, tars to read from, batches decoded ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pipelines.run_step import run_actors
from schemas.errors import SampleError
from schemas.image_decode import Pixels, decode_rgb
from schemas.manifest import ShardEntry, entry_of_table, tar_url
from schemas.sample import STATUS_SUCCESS, write_table
from schemas.shard import ShardReader

SCORE_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("score", pa.float32()),  # 0..1 of a classifier; of a feature_head whatever its last layer gives
    ]
)

Scorer = Callable[[ShardEntry], None]
"""Writes the columns of one raw shard; the table last, which marks the shard as done."""


def run_scorers(name: str, make_scorer: Callable[[int], Scorer], shards: Sequence[ShardEntry], num_done: int) -> None:
    """Score raw shards with actors, one a GPU, else one a CPU but one; each calls `make_scorer(num_threads)` once."""
    if not shards:
        return
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    num_actors = max(1, min(num_gpus or num_cpus - 1, len(shards)))
    make_worker = partial(make_scorer, max(1, num_cpus // num_actors))
    run_actors(f"signals {name}", make_worker, shards, num_done, num_gpus=1.0 if num_gpus else 0.0)


def prepare_device(num_threads: int) -> str:
    """The device that an actor's model runs on."""
    import torch

    torch.set_num_threads(num_threads)
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


class BatchedImages:
    """Decodes the images of a shard in threads, one batch ahead of the model."""

    def __init__(self, batch_size: int, num_threads: int) -> None:
        self._batch_size = batch_size
        self._decoders = ThreadPoolExecutor(max_workers=max(1, num_threads))

    def batches(
        self, raw: pa.Table, reader: Any, rows: npt.NDArray[np.int64], prepare: Callable[[Pixels], Pixels]
    ) -> Iterator[tuple[list[int], list[Pixels]]]:
        """Rows and their prepared pixels. Images that cannot be decoded are left out: no score rule lets them pass."""
        offsets, sizes = raw["offset"].to_pylist(), raw["num_bytes"].to_pylist()

        def load(row: int) -> Pixels | None:
            try:
                return prepare(decode_rgb(reader.read(offsets[row], sizes[row])))
            except SampleError:
                return None

        def submit(start: int) -> list[tuple[int, Future[Pixels | None]]]:
            return [(row, self._decoders.submit(load, row)) for row in rows[start : start + self._batch_size].tolist()]

        following = submit(0)
        for start in range(self._batch_size, len(rows) + self._batch_size, self._batch_size):
            current, following = following, submit(start)
            loaded = [(row, future.result()) for row, future in current]
            decoded = [(row, pixels) for row, pixels in loaded if pixels is not None]
            if decoded:
                yield [row for row, _ in decoded], [pixels for _, pixels in decoded]


def write_scores(url: str, uids: pa.ChunkedArray, scores: npt.NDArray[np.float32]) -> None:
    """Write the table of one shard; nan becomes null."""
    column = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    write_table(url, pa.table([uids, column], schema=SCORE_SIGNALS))
