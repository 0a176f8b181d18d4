"""Reshard: equal bytes for any number of workers and after any crash; webdataset reads the shards."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.reshard.reshard import plan_groups, reshard, reshard_folder
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import CURATED, read_table
from pairloom.schemas.errors import InputError
from tests.support.raw_builder import Pair, build_raw, encoded, photograph
from tests.support.reshard_builder import GONE, files_of, make_pairs, prepare, recipe_for


def curated_rows(folder: str) -> list[dict[str, Any]]:
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    assert all(table.schema.names == CURATED.names for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def test_every_kept_sample_is_there_once_with_its_bytes(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_for(tmp_path)
    raw, selection = prepare(tmp_path, recipe)
    folder = reshard(recipe, raw, selection)
    rows = curated_rows(folder)
    kept = {
        row["uid"]
        for shard in load_manifest(selection).shards
        for row in read_table(table_url(selection, shard.name)).to_pylist()
        if row["kept"]
    }
    assert len(rows) == len(kept) == 21
    assert {row["uid"] for row in rows} == kept
    manifest = load_manifest(folder)
    assert all(shard.num_samples <= 6 for shard in manifest.shards)
    images = {pair.image for pair in make_pairs()}
    for shard in manifest.shards:
        tar = Path(tar_url(folder, shard)).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.num_bytes, shard.sha256)
        reader = ShardReader(tar_url(folder, shard))
        for row in read_table(table_url(folder, shard.name)).to_pylist():
            assert reader.read(row["offset"], row["num_bytes"]) in images
            assert row["key"].startswith(shard.name.rpartition("/")[2])
            raw_row = read_table(table_url(raw, row["raw_shard"])).slice(row["raw_row"], 1).to_pylist()[0]
            assert raw_row["uid"] == row["uid"]


def test_webdataset_reads_the_shards(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_for(tmp_path)
    folder = reshard(recipe, *prepare(tmp_path, recipe))
    urls = [tar_url(folder, shard) for shard in load_manifest(folder).shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    rows = curated_rows(folder)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        notes = json.loads(sample["json"])
        assert list(notes) == sorted(notes)
        assert (notes["uid"], notes["caption"]) == (row["uid"], sample["txt"].decode())
        assert notes["sha256"] == hashlib.sha256(sample["png" if "png" in sample else "jpg"]).hexdigest()


def test_the_bytes_depend_on_the_seed_alone(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_for(tmp_path)
    raw, selection = prepare(tmp_path, recipe)
    first = files_of(reshard(recipe, raw, selection))
    again = tmp_path / "again"
    other = prepare(again, recipe_for(again))
    assert files_of(reshard(recipe_for(again), *other)) == first
    shuffled = curated_rows(reshard(recipe_for(tmp_path, shuffle_seed=1), raw, selection))
    assert [row["uid"] for row in shuffled] != [row["uid"] for row in curated_rows(reshard(recipe, raw, selection))]


def test_an_unfinished_group_is_finished(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_for(tmp_path)
    raw, selection = prepare(tmp_path, recipe)
    folder = Path(reshard(recipe, raw, selection))
    whole = files_of(str(folder))
    for name in ("manifest.json", "shards.parquet", "sizes.json", "0000/0000001.parquet"):
        (folder / name).unlink()
    (folder / "0000/0000001.tar").write_bytes(b"half")
    (folder / "0000/.0000002.tar.abc.tmp").write_bytes(b"left by a killed worker")
    untouched = (folder / "0000/0000000.tar").stat().st_mtime_ns
    reshard(recipe, raw, selection)
    assert files_of(str(folder)) == whole
    assert (folder / "0000/0000000.tar").stat().st_mtime_ns == untouched


def test_a_selection_without_samples_is_an_error(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_for(tmp_path)
    raw = build_raw(tmp_path, [GONE])
    selection = select(recipe, inputs_of(recipe, raw, {}, dedupe(recipe, raw, {})))
    with pytest.raises(InputError, match=r"keeps no sample \(timeout 1\)"):
        reshard(recipe, raw, selection)


def test_a_global_shuffle_mixes_everything_whatever_the_raw_shards(tmp_path: Path, ray_session: None) -> None:
    """The bytes depend on the samples alone, not on the raw shards, or on a crash between or within the passes."""
    folders = {}
    for name, samples_per_shard in (("few", 40), ("many", 3)):
        recipe = recipe_for(tmp_path / name, shuffle="global", samples_per_shard=2)
        raw = build_raw(tmp_path / name, make_pairs(), samples_per_shard)
        selection = select(recipe, inputs_of(recipe, raw, {}, dedupe(recipe, raw, {})))
        folders[name] = (recipe, raw, selection, reshard(recipe, raw, selection))
    rows = {name: curated_rows(folder) for name, (_, _, _, folder) in folders.items()}
    tables = {name: [(row["uid"], row["key"], row["offset"]) for row in of_one] for name, of_one in rows.items()}
    assert tables["few"] == tables["many"]
    assert len({row["uid"] for row in rows["many"]}) == 21
    recipe, raw, selection, folder = folders["many"]
    assert max(shard.num_samples for shard in load_manifest(folder).shards) <= 2
    neighbours = [row["raw_shard"] for row in rows["many"]]
    assert sum(left != right for left, right in pairwise(neighbours)) > 15
    assert not (Path(folder) / "spill").exists()
    images = {pair.image for pair in make_pairs()}
    for shard in load_manifest(folder).shards:
        reader = ShardReader(tar_url(folder, shard))
        for row in read_table(table_url(folder, shard.name)).to_pylist():
            assert reader.read(row["offset"], row["num_bytes"]) in images
    whole = files_of(folder)
    for name in ("manifest.json", "shards.parquet", "sizes.json", "0000/0000001.parquet", "0000/0000004.parquet"):
        (Path(folder) / name).unlink()
    assert files_of(reshard(recipe, raw, selection)) == whole


def test_groups_cover_all_shards_and_number_their_outputs() -> None:
    kept = [0, 5, 7, 0, 13, 1, 6]
    raw = Manifest("m", "raw", "0", [], [ShardEntry(f"0000/{place:07d}", 20, 20, 1) for place in range(7)])
    selection = Manifest(
        "s", "s", "0", [], [ShardEntry(f"0000/{place:07d}", 20, num, 0) for place, num in enumerate(kept)]
    )
    orders = [
        [shard.name for group in plan_groups(raw, selection, recipe_for(Path("unused"), shuffle_seed=seed))
         for shard in group.raw_shards]
        for seed in range(4)
    ]  # fmt: skip
    assert len({tuple(order) for order in orders}) > 1
    groups = plan_groups(raw, selection, recipe_for(Path("unused")))
    members = [shard.name for group in groups for shard in group.raw_shards]
    assert sorted(members) == [f"0000/{place:07d}" for place, num in enumerate(kept) if num]
    following = 0
    for group in groups:
        assert group.first_output == following
        following += group.num_outputs
        num_kept = sum(kept[int(shard.name[-7:])] for shard in group.raw_shards)
        assert group.num_outputs == -(-num_kept // 6)


KILLED_RUN = """
import sys
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.reshard.reshard import reshard
from pairloom.schemas.recipes.curate import CurateRecipe
recipe = CurateRecipe.model_validate_json(sys.argv[1])
start_ray()
reshard(recipe, sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_bytes_are_the_same(tmp_path: Path, ray_session: None) -> None:
    """kill -9 of the driver during reshard, three times; then the same command finishes."""
    pairs = [pair for seed in range(60) for pair in photographs_of_size(seed)]
    folders = {}
    for name in ("whole", "killed"):
        recipe = recipe_for(tmp_path / name, samples_per_shard=8, raw_shards_per_group=1)
        raw = build_raw(tmp_path / name, pairs, samples_per_shard=10)
        folders[name] = (recipe, raw, select(recipe, inputs_of(recipe, raw, {}, dedupe(recipe, raw, {}))))
    whole = files_of(reshard(*folders["whole"]))
    recipe, raw, selection = folders["killed"]
    target = Path(reshard_folder(recipe, raw, selection).url)
    for wanted in (1, 5, 9):
        command = [sys.executable, "-c", KILLED_RUN, recipe.model_dump_json(), raw, selection]
        kill_when(lambda: len(list(target.glob("0000/*.parquet"))) >= wanted, command)  # noqa: B023
        assert not (target / "manifest.json").exists()
    assert files_of(reshard(recipe, raw, selection)) == whole


def photographs_of_size(seed: int) -> list[Pair]:
    """Two images that are large enough to take a while to write."""
    numbers = (2 * seed, 2 * seed + 1)
    return [
        Pair(encoded(photograph(number, 640, 480), "PNG"), f"picture {number}", f"http://a.test/{number}.png")
        for number in numbers
    ]


def kill_when(is_time: Callable[[], bool], command: list[str]) -> None:
    """Start a command, wait for a condition, then kill -9 it."""
    process = subprocess.Popen(command, start_new_session=True, env=dict(os.environ))
    while not is_time():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the raylet notices that its driver is gone
