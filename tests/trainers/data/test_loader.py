"""Decoded samples: the same for any number of ranks and worker processes; broken ones are replaced and told."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest

from pairloom.schemas.data_set.tables import fold_of
from pairloom.schemas.errors import InputError, StorageError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.schemas.storage import storage
from pairloom.trainers.data.dataset import open_dataset, open_pairs
from pairloom.trainers.data.loader import Loader, Share, shares
from pairloom.trainers.data.resize import resize_into
from pairloom.trainers.data.sample_order import Order, Stream
from tests.support.curated_builder import build_curated, colour_pairs
from tests.support.raw_builder import photograph

NUM, BATCH, LANES = 40, 8, 4
BROKEN = (3, 17)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 samples in three shards, two of them without a readable picture."""
    pairs = colour_pairs(NUM)
    for index in BROKEN:
        image, caption = pairs[index]
        pairs[index] = (image[: len(image) // 3], caption)
    return build_curated(tmp_path_factory.mktemp("data"), pairs)


def loader(data: str, rank: int = 0, world_size: int = 1, crop: tuple[float, float] | None = None) -> Loader:
    dataset = open_dataset(DataSource(path=data))
    stream = Stream([Order(dataset.shard_sizes, 0, 0)], [1.0], LANES, BATCH)
    return Loader([dataset], stream, Preprocess(32), AugmentRecipe(random_resized_crop=crop), 0, rank, world_size)


def whole(parts: Sequence[Share]) -> tuple[list[str], bytes, list[str]]:
    uids = [uid for part in parts for uid in part.uids]
    replaced = [line for part in parts for line in part.replaced]
    return uids, b"".join(part.pixels.numpy().tobytes() for part in parts), replaced


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_change_nothing(data: str, world_size: int, num_workers: int) -> None:
    crop = (0.5, 1.0)
    expected = [whole([loader(data, crop=crop).share(step)]) for step in range(6)]
    ranks = [shares(loader(data, rank, world_size, crop), 0, 6, num_workers) for rank in range(world_size)]
    assert [whole(parts) for parts in zip(*ranks, strict=True)] == expected


def test_resumed_loader_continues_at_its_sample(data: str) -> None:
    assert whole(list(shares(loader(data), 2, 5, 1))) == whole([loader(data).share(step) for step in (2, 3, 4)])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_mixture_is_the_same_on_any_number_of_ranks(data: str, tmp_path: Path, world_size: int) -> None:
    others = build_curated(tmp_path, [(image, f"other {caption}") for image, caption in colour_pairs(12)])
    datasets = [open_pairs(DataSource(path=path)) for path in (data, others)]
    orders = [Order(dataset.shard_sizes, 0, index) for index, dataset in enumerate(datasets)]
    stream = Stream(orders, [3.0, 1.0], LANES, BATCH)
    ranks = [replace(loader(data, rank, world_size), datasets=datasets, stream=stream) for rank in range(world_size)]
    found = [whole(parts) for parts in zip(*(shares(one, 0, 12, 1) for one in ranks), strict=True)]
    alone = replace(loader(data), datasets=datasets, stream=stream)
    assert found == [whole([alone.share(step)]) for step in range(12)]
    own = datasets[1].rows_by_uid()
    assert [sum(uid in own for uid in uids) for uids, _, _ in found] == [2] * 12
    assert {uid for uids, _, _ in found[:6] for uid in uids if uid in own} == set(own)  # an epoch of its 12 samples


def test_broken_samples_are_replaced_and_logged(data: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pairloom"):
        found = list(shares(loader(data), 0, 5, 0))  # one epoch
    assert sum(len(share.uids) for share in found) == NUM
    shards = [open_pairs(DataSource(path=data)).rows(shard) for shard in range(3)]
    broken = [pair for rows in shards for pair in zip(rows.uids, rows.keys, strict=True)]
    for index in BROKEN:
        uid = broken[index][0]
        assert any(uid in line for share in found for line in share.replaced)
        assert f"key {broken[index][1]}, uid {uid}" in caplog.text
        assert all(uid not in share.uids for share in found)


def test_crops_are_drawn_by_seed_epoch_and_uid(data: str) -> None:
    cropped = [loader(data, crop=(0.3, 0.6)).share(step) for step in range(10)]  # two epochs
    by_uid: dict[str, list[np.ndarray]] = {}  # type: ignore[type-arg]
    for share in cropped:
        for uid, pixels in zip(share.uids, share.pixels.numpy(), strict=True):
            by_uid.setdefault(uid, []).append(pixels)
    twice = [views for views in by_uid.values() if len(views) >= 2]
    assert twice
    assert all(not np.array_equal(views[0], views[-1]) for views in twice)


def test_a_fold_is_held_out(data: str) -> None:
    halves = [open_pairs(DataSource(path=data, hold_out_fold=(fold, 2))) for fold in (0, 1)]
    assert sum(sum(half.shard_sizes) for half in halves) == NUM
    for fold, half in enumerate(halves):
        uids = half.rows_by_uid()
        assert uids
        assert all(fold_of(uid, 2) != fold for uid in uids)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_come_out_of_the_workers_as_they_are(data: str, num_workers: int) -> None:
    class Failing:
        shard_sizes = (16, 16, 8)
        manifest_hash = None

        def read(self, shard: int, row: int) -> None:
            raise StorageError("cannot read s3://bucket/0.tar: slow down")

        def read_ahead(self, shard: int) -> None:
            pass

    failing = replace(loader(data), datasets=[Failing()])  # type: ignore[list-item]
    with pytest.raises(StorageError, match=r"^cannot read s3://bucket/0\.tar: slow down$"):
        next(shares(failing, 0, 2, num_workers))


@pytest.mark.parametrize("wait_s", [0, 8], ids=["while workers start", "while a pipe is full"])
def test_workers_end_with_a_killed_rank(tmp_path: Path, wait_s: float) -> None:
    """A worker must not outlive its rank."""
    data = build_curated(tmp_path, [(image, caption * 10_000) for image, caption in colour_pairs(16)])
    rank = multiprocessing.get_context("spawn").Process(target=take_one_and_wait, args=(data,))
    rank.start()
    assert rank.pid is not None
    deadline = time.monotonic() + 60
    while not (workers := psutil.Process(rank.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(wait_s)
    assert workers
    os.kill(rank.pid, signal.SIGKILL)
    rank.join()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def take_one_and_wait(data: str) -> None:
    found = shares(loader(data), 0, 100, 1)
    next(found)
    time.sleep(600)


def test_nothing_but_broken_samples_stops(tmp_path: Path) -> None:
    data = build_curated(tmp_path, [(image[: len(image) // 3], caption) for image, caption in colour_pairs(4)])
    with pytest.raises(InputError, match="20 broken samples in a row"):
        loader(data).share(0)


def test_a_forked_worker_makes_its_own_connection_to_remote_storage() -> None:
    storage.filesystem("s3://bucket/0.tar")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(connects)


def connects() -> bool:
    """fsspec raises here for what was opened before the fork."""
    return storage.filesystem("s3://bucket/0.tar").loop is not None


@pytest.mark.parametrize("mode", ["squash", "center_crop"])
@pytest.mark.parametrize("resample", [2, 3])
def test_training_sees_the_pixels_of_the_exported_processor(
    mode: Literal["squash", "center_crop"], resample: int
) -> None:
    preprocess = Preprocess(64, mode, resample=resample)
    generator = np.random.default_rng(0)
    for height, width in ((640, 480), (100, 300), (64, 90), (65, 64), (30, 20), (64, 64)):
        noise = generator.integers(0, 256, (height, width, 3), np.uint8)  # nothing is harder to resize
        for pixels in (noise, photograph(3, width, height)):
            ours = np.empty((64, 64, 3), np.uint8)
            resize_into(ours, pixels, preprocess)
            difference = np.abs(ours.astype(int) - preprocess.resize(pixels))
            assert difference.max() <= 2
            assert (difference > 0).mean() < 0.01
