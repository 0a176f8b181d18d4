"""Batches across shards: the values of a row do not depend on other rows, shards, order or threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairloom.pipelines.engine.run_shards import run_actors
from pairloom.pipelines.signals.classifier import ClassifierJob, ClassifierScorer
from pairloom.pipelines.signals.clip import ClipJob, ClipScorer
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.signals.models.batching import BatchFiller, Values
from pairloom.schemas.data_set.manifest import ShardEntry, load_manifest
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.errors import InputError, ShardError
from tests.support.clip_digest import CAPTIONS, clip_rows, rows_of
from tests.support.raw_builder import Pair, build_raw, photographs
from tests.support.signal_builder import recipe_for, write_classifier
from tests.support.tiny_models import write_clip


def test_batches_are_filled_across_shards_and_every_row_gets_its_own_values() -> None:
    sizes: list[int] = []

    def compute(inputs: Sequence[int]) -> Values:
        sizes.append(len(inputs))
        return np.array(inputs, np.float32) * 2

    filler = BatchFiller(8, 3, 2)
    lane = filler.lane(compute)

    def score(shard: int) -> list[float]:
        with filler.slot() as rows:
            placed = [rows.load(lane, partial(int, 100 * shard + row)) for row in range(3)]
        return [float(place.values()) for place in (one.result() for one in placed) if place is not None]

    filler.expect(1)  # rows may come as long as not all shards are there
    with ThreadPoolExecutor(10) as pool:
        running = [pool.submit(score, shard) for shard in range(10)]
        while len(sizes) < 3:
            assert not any(one.done() and one.exception() for one in running)
            time.sleep(0.01)
        filler.expect(-1)
        assert [one.result() for one in running] == [[200 * shard + 2 * row for row in range(3)] for shard in range(10)]
    assert sizes == [8, 8, 8, 8]  # 30 rows; the last batch is filled up


def test_rows_that_cannot_be_loaded_leave_their_room_to_others() -> None:
    filler = BatchFiller(2, 2, 1)
    lane = filler.lane(lambda inputs: np.array(inputs, np.float32))
    with filler.slot() as rows:
        placed = [rows.load(lane, partial((lambda row: row if row % 10 == 0 else None), row)) for row in range(200)]
    found = [place.result() for place in placed]
    assert [float(place.values()) for place in found if place is not None] == list(range(0, 200, 10))


def measured(folder: Path, model: Path, pairs: list[Pair], samples_per_shard: int, num_threads: int) -> dict[str, Any]:
    """Score, features and probability of each uid."""
    raw = build_raw(folder, pairs, samples_per_shard)
    shards = load_manifest(raw).shards
    clip = ClipScorer(ClipJob("clip", raw, None, str(folder / "clip"), (str(model),), 8), num_threads)
    job = ClassifierJob("nsfw", raw, str(folder / "nsfw"), str(model.parent / "classifier"), "kind 1", 8)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(clip, shards))
        list(pool.map(ClassifierScorer(job, num_threads), shards))
    scores = {row["uid"]: row["score"] for shard in shards for row in rows_of(str(folder / "nsfw"), shard.name)}
    names = [shard.name for shard in shards]
    return {uid: (scores[uid], *row) for uid, row in clip_rows(str(folder / "clip"), names).items()}


def test_numbers_are_the_same_to_the_bit_for_any_shards_order_and_threads(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "model", image_size=64)
    write_classifier(tmp_path / "classifier")
    pairs = photographs(41, CAPTIONS)
    expected = measured(tmp_path / "one", model, pairs, 100, 1)
    assert len(expected) == 41
    for place, (samples_per_shard, num_threads) in enumerate([(3, 2), (7, 8), (1, 3)]):
        shuffled = [pairs[row] for row in np.random.default_rng(place).permutation(len(pairs))]
        assert measured(tmp_path / f"other{place}", model, shuffled, samples_per_shard, num_threads) == expected


RUN = """
import sys
from pathlib import Path
import ray
from tests.support.clip_digest import digest_of
ray.init("local", num_cpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
print(digest_of(Path(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    write_clip(tmp_path / "model", image_size=64)
    digests = set()
    for num_workers, samples_per_shard in ((2, 4), (8, 7)):  # one actor of two threads, seven of one
        command = [
            sys.executable,
            "-c",
            RUN,
            str(num_workers),
            str(tmp_path / str(num_workers)),
            str(samples_per_shard),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


class WritesAll:
    """Records each shard, and fails for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, shard: ShardEntry) -> None:
        if shard.name == "0000/0000003":
            raise ValueError("no good")
        (self._folder / shard.name.replace("/", "-")).touch()


def test_an_error_in_one_shard_names_it_and_the_others_are_done(tmp_path: Path, ray_session: None) -> None:
    shards = [ShardEntry(shard_name(index), 1, 1, 0) for index in range(12)]
    with pytest.raises(ShardError, match=r"squares: shard 0000/0000003 did not finish .*no good"):
        run_actors("squares", partial(WritesAll, tmp_path), shards, shards_at_once=3)
    assert len(list(tmp_path.iterdir())) == 11


def test_a_truncated_tar_is_named(tmp_path: Path, ray_session: None) -> None:
    raw = build_raw(tmp_path, photographs(12), samples_per_shard=2)
    tar = Path(raw) / "0000" / "0000004.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    model = write_classifier(tmp_path / "nsfw")
    recipe = recipe_for(tmp_path, {"kind": "image_classifier", "name": "nsfw", "label": "kind 0", "model": str(model)})
    with pytest.raises(InputError, match=r"0000004\.tar: truncated"):
        measure_signal(recipe, recipe.signals[0], raw, None)


class DiesOnce:
    """Kills its process at the first call with a certain number."""

    def __init__(self, marker: Path, number: int) -> None:
        self._marker, self._number = marker, number

    def __call__(self, item: int) -> int:
        if item == self._number and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item


@pytest.mark.slow
def test_shards_of_an_actor_that_is_killed_are_done_again(tmp_path: Path, ray_session: None) -> None:
    make: Callable[[], DiesOnce] = partial(DiesOnce, tmp_path / "died", 5)
    assert run_actors("squares", make, range(12), shards_at_once=4) == [item * item for item in range(12)]
    assert (tmp_path / "died").exists()
