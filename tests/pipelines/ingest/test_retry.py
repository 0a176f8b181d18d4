"""Retry: a new generation equals a raw data set without failures, after any interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.pipelines.ingest.retry import retry_transient
from pairloom.schemas.data_set.manifest import load_manifest, tar_url
from pairloom.schemas.data_set.tombstones import put_tombstone
from tests.support.generation_builder import (
    FAILING,
    GONE,
    HOPELESS,
    check_raw,
    files,
    reasons_of,
    recipe_on,
    source_rows,
)
from tests.support.http_server import TestServer
from tests.support.ingest_builder import read_rows, write_csv


def test_retry_heals_as_if_nothing_had_failed(tmp_path: Path, web: TestServer, ray_session: None) -> None:
    recipe = recipe_on(tmp_path, web, samples_per_shard=4)
    folder = ingest(recipe)
    first, old = load_manifest(folder), files(folder)
    assert set(reasons_of(folder)) == FAILING.keys() | HOPELESS.keys()
    asked = web.requests.copy()
    assert retry_transient(recipe, folder) == {"num_rows": 5, "num_came": 4, "num_shards": 5, "generation": 1}
    asked_again = web.requests - asked
    assert asked_again.pop("/robots.txt", 0) <= 2, "one a host"
    assert sum(asked_again.values()) == 5, "just the rows that failed"
    assert reasons_of(folder) == GONE
    check_raw(folder)
    whole = ingest(recipe_on(tmp_path, web, "whole", samples_per_shard=4))  # nothing fails any more
    tars = [[Path(tar_url(of, shard)).read_bytes() for shard in load_manifest(of).shards] for of in (folder, whole)]
    assert tars[0] == tars[1]
    assert read_rows(folder) == read_rows(whole)
    now, same = load_manifest(folder), load_manifest(whole)
    assert (now.drop_counts, now.details, now.num_bytes) == (same.drop_counts, same.details, same.num_bytes)
    assert (now.generation, now.hash() == first.hash()) == (1, False)
    untouched = "0000/0000003"  # row 12 came in vain
    assert [files(folder)[f"{folder}/{untouched}{end}"] for end in (".tar", ".parquet")] == [
        old[f"{folder}/{untouched}{end}"] for end in (".tar", ".parquet")]  # fmt: skip
    before = files(folder)
    assert retry_transient(recipe, folder)["num_came"] == 0
    assert ingest(recipe, before_work=lambda: pytest.fail("there is no work")) == folder
    assert files(folder) == before
    head = (Path(folder) / "manifest.json").read_bytes()
    write_csv(tmp_path / "urls" / "b.csv", source_rows(web)[6:8])
    ingest(recipe)
    after = load_manifest(folder)
    assert after.generation == 2
    check_raw(folder)
    (Path(folder) / "manifest.json").write_bytes(head)  # as if killed between the files of the manifest
    ingest(recipe)
    assert load_manifest(folder) == after


@pytest.mark.parametrize("operation", ["retry", "recall"])
@pytest.mark.slow
def test_killed_at_any_write_the_same_command_finishes(
    tmp_path: Path, web: TestServer, ray_session: None, operation: str
) -> None:
    recipe = recipe_on(tmp_path, web)
    ingest(recipe)
    if operation == "recall":
        put_tombstone(recipe.root, "domains", ["localhost"])
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.support.generation_builder",
        operation,
        tmp_path / "recipe.json",
        recipe.root,
    ]
    repository = Path(__file__).resolve().parents[3]
    done = subprocess.run([*command, tmp_path / "scratch"], cwd=repository, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15, "3 tars, 3 tables twice, journal, manifest, removals"
