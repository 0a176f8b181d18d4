"""A root that release 0.1.0 has curated: nothing is made anew, everything can be read, and curating again gives it.

`python -m tests.golden.make_data_set` has written `tests/golden/data_set_0_1_0` at that release.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pairloom.pipelines.curate import curate
from pairloom.pipelines.engine.step_folder import nothing
from pairloom.schemas.data_set.manifest import load_manifest, resolve, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import DataSource
from pairloom.trainers.data.dataset import open_pairs
from tests.support.golden_data import DATA_SET, copy_data_set
from tests.support.golden_differences import differences

EXPECTED: dict[str, Any] = json.loads((DATA_SET / "expected.json").read_text())
STEPS = [step["folder"] for step in EXPECTED["curate"]["steps"]]


def pairloom(folder: Path, *arguments: str) -> Any:
    """The result of a command, which must succeed."""
    command: list[str | Path] = [Path(sys.executable).parent / "pairloom", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`recipe.yaml`, `source` and `root`, with times of long ago."""
    copy_data_set(tmp_path)
    for path in (tmp_path / "root").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return tmp_path


def test_curate_writes_nothing(folder: Path) -> None:
    before = snapshot(folder)
    summary = pairloom(folder, "curate", "recipe.yaml")
    assert snapshot(folder) == before
    assert differences(EXPECTED["curate"], summary, "curate") == []


def test_another_threshold_reads_the_old_tables(folder: Path) -> None:
    summary = pairloom(folder, "curate", "recipe.yaml", "select.min_words=7", "--only", "select")
    assert summary["steps"][-1]["drop_counts"]["few_words"] == 2
    assert summary["difference"]["kept_before"] == EXPECTED["curate"]["steps"][-1]["num_kept"]


@pytest.mark.parametrize("path", EXPECTED["inspect"])
def test_inspect(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pairloom.pipelines.inspect.inspect import inspect

    monkeypatch.chdir(folder)
    assert differences(EXPECTED["inspect"][path], json.loads(json.dumps(inspect(path))), path) == []


@pytest.mark.parametrize("uid", EXPECTED["explain"])
def test_explain(folder: Path, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pairloom.pipelines.inspect.inspect import explain

    monkeypatch.chdir(folder)
    assert differences(EXPECTED["explain"][uid], json.loads(json.dumps(explain("root", uid))), uid) == []


def test_the_commands_show_the_same(folder: Path) -> None:
    uid = next(iter(EXPECTED["explain"]))
    assert differences(EXPECTED["inspect"]["root"], pairloom(folder, "inspect", "root"), "inspect") == []
    assert differences(EXPECTED["explain"][uid], pairloom(folder, "explain", "root", uid), "explain") == []


@pytest.mark.parametrize("step", STEPS)
def test_every_table_can_be_read(folder: Path, step: str) -> None:
    manifest = load_manifest(str(folder / step))
    tables = [read_table(table_url(str(folder / step), shard.name)) for shard in manifest.shards]
    assert [table.num_rows for table in tables] == [shard.num_rows for shard in manifest.shards]


@pytest.mark.parametrize("step", [step for step in STEPS if "/raw/" in step or "/curated/" in step])
def test_every_image_lies_where_its_row_says(folder: Path, step: str) -> None:
    manifest = load_manifest(str(folder / step))
    for shard in manifest.shards:
        reader = ShardReader(tar_url(str(folder / step), shard))
        for row in read_table(table_url(str(folder / step), shard.name)).to_pylist():
            if row["key"] is not None:
                image = reader.read(row["offset"], row["num_bytes"])
                assert hashlib.sha256(image).hexdigest() == row["image_sha256"]
        reader.close()


def test_the_trainer_opens_it(folder: Path) -> None:
    dataset = open_pairs(DataSource(path=str(folder / "root/curated/train")))
    assert sum(dataset.shard_sizes) == EXPECTED["curate"]["steps"][-1]["num_kept"]
    assert dataset.manifest_hash == load_manifest(resolve(str(folder / "root/curated/train"))).hash()
    sample = dataset.read(0, 0)
    assert sample.caption.startswith("a ")
    assert bytes(sample.image or b"").startswith(b"\x89PNG")


def test_curating_again_gives_the_same(folder: Path, ray_session: None) -> None:
    """Folders, tars and values of all tables; parquet files may be of another version."""
    paths = [f"root={folder}/again", f"source.path={folder}/source/captions.jsonl"]
    summary = curate(load_recipe(str(folder / "recipe.yaml"), CurateRecipe, paths), nothing)
    assert [step["folder"].replace(f"{folder}/again", "root") for step in summary["steps"]] == STEPS
    for step in STEPS:
        old, new = f"{folder}/{step}", f"{folder}/{step}".replace("/root/", "/again/")
        assert load_manifest(new).hash() == load_manifest(old).hash()
        for shard in load_manifest(old).shards:
            assert_same(read_table(table_url(old, shard.name)), read_table(table_url(new, shard.name)))
            if shard.sha256 is not None:
                assert Path(tar_url(old, shard)).read_bytes() == Path(tar_url(new, shard)).read_bytes()


def assert_same(expected: pa.Table, found: pa.Table) -> None:
    """Columns of floats may differ in their last digits."""
    for name in expected.column_names:
        if pa.types.is_floating(expected[name].type):
            old, new = (np.array(table[name].to_pylist(), float) for table in (expected, found))
            np.testing.assert_allclose(new, old, rtol=1e-5)
        else:
            assert found[name].equals(expected[name]), name
