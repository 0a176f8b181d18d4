"""gc removes unreferenced results, keeps needed ones, and does not run beside other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pairloom.pipelines.engine.root_lock import exclusive_lock, running, shared_lock
from pairloom.pipelines.inspect.gc import collect_garbage
from pairloom.schemas.data_set.generations import note_generation
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

SHARD = "0000/0000000"


def put(root: str, step: str, name: str, folder: str, parents: list[str] | None = None) -> str:
    """Write a complete result of one shard and point LATEST at it. Returns the hash of its manifest."""
    url = storage.join(root, step, name, folder)
    tar = b"tar of " + folder.encode()
    storage.put_bytes(storage.join(url, f"{SHARD}.tar"), tar)
    storage.put_bytes(storage.join(url, f"{SHARD}.parquet"), b"table")
    manifest = Manifest(name, step, folder * 8, parents or [], [ShardEntry(SHARD, 1, 1, len(tar))])
    save_manifest(url, manifest)
    set_latest(url)
    return manifest.hash()


def walk_twice(root: str) -> None:
    """One raw data set, two dedupes, three selections; the last two from the second dedupe."""
    raw = put(root, "raw", "main", "aaaaaaaa")
    first = put(root, "dedupe", "default", "11111111", [raw])
    second = put(root, "dedupe", "default", "22222222", [raw])
    loose = put(root, "selections", "loose", "33333333", [raw, second])
    old = put(root, "selections", "default", "44444444", [raw, first])
    put(root, "selections", "default", "55555555", [raw, second])
    put(root, "curated", "train", "66666666", [raw, old])
    put(root, "curated", "train", "77777777", [raw, loose])


def paths(found: dict[str, Any]) -> set[str]:
    return {one["url"].removeprefix(found["root"] + "/") for one in found["garbage"]}


UNNEEDED = {"dedupe/default/11111111", "selections/default/44444444", "curated/train/66666666"}


def test_unreferenced_results_are_removed(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    walk_twice(root)
    told = collect_garbage(root, min_age_h=0, dry_run=True)
    assert paths(told) == UNNEEDED
    assert told["num_bytes"] == sum(
        file.stat().st_size for path in UNNEEDED for file in (tmp_path / "root" / path).rglob("*") if file.is_file()
    )
    assert all((tmp_path / "root" / path / "manifest.json").exists() for path in UNNEEDED), "a dry run only tells"
    assert paths(collect_garbage(root, min_age_h=0)) == UNNEEDED
    left = {str(path.parent.relative_to(root)) for path in Path(root).rglob("manifest.json")}
    assert left == {
        "raw/main/aaaaaaaa", "dedupe/default/22222222", "selections/loose/33333333", "selections/default/55555555",
        "curated/train/77777777",
    }  # fmt: skip
    assert not any((tmp_path / "root" / path).exists() for path in UNNEEDED)
    assert paths(collect_garbage(root, min_age_h=0)) == set()


def test_on_object_storage(tmp_path: Path) -> None:
    root = f"memory:///{tmp_path.name}-{time.time_ns()}"
    walk_twice(root)
    assert paths(collect_garbage(root, min_age_h=0)) == UNNEEDED
    assert not storage.exists(f"{root}/curated/train/66666666")
    assert storage.exists(f"{root}/curated/train/77777777/manifest.json")
    assert running(root) == []


def test_the_newest_and_their_parents_are_kept(tmp_path: Path) -> None:
    walk_twice(str(tmp_path))
    assert paths(collect_garbage(str(tmp_path), keep=2, min_age_h=0)) == set()


def test_the_data_of_a_training_run_stays(tmp_path: Path) -> None:
    walk_twice(str(tmp_path))
    trained_on = json.loads((tmp_path / "curated/train/66666666/manifest.json").read_text())["hash"]
    assert paths(collect_garbage(str(tmp_path), min_age_h=0, used={trained_on})) == set()


def test_a_name_that_has_just_moved_on_keeps_its_results(tmp_path: Path) -> None:
    walk_twice(str(tmp_path))
    found = collect_garbage(str(tmp_path), min_age_h=1)
    assert found["garbage"] == []
    assert len(found["waiting"]) == 3


def test_results_of_an_earlier_raw_generation_keep_their_raw_folder(tmp_path: Path) -> None:
    old = put(str(tmp_path), "raw", "main", "aaaaaaaa")
    put(str(tmp_path), "dedupe", "default", "11111111", [old])
    raw = str(tmp_path / "raw/main/aaaaaaaa")
    retried = Manifest("main", "raw", "aaaaaaaa" * 8, [], [ShardEntry(SHARD, 1, 1, 15)], generation=1)
    note_generation(raw, retried, [SHARD])
    save_manifest(raw, retried)
    put(str(tmp_path), "raw", "main", "bbbbbbbb")
    assert paths(collect_garbage(str(tmp_path), min_age_h=0, dry_run=True)) == set()


def test_unfinished_results_go_when_a_later_one_was_finished(tmp_path: Path) -> None:
    given_up = tmp_path / "signals/clip/99999999" / f"{SHARD}.parquet"
    given_up.parent.mkdir(parents=True)
    given_up.write_bytes(b"table")
    os.utime(given_up, (1, 1))
    put(str(tmp_path), "signals", "clip", "11111111")
    resumable = tmp_path / "signals/clip/88888888" / f"{SHARD}.parquet"
    resumable.parent.mkdir(parents=True)
    resumable.write_bytes(b"table")
    os.utime(resumable, (time.time() + 60, time.time() + 60))
    alone = tmp_path / "raw/main/77777777" / f"{SHARD}.parquet"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(b"table")
    os.utime(alone, (1, 1))
    assert paths(collect_garbage(str(tmp_path), min_age_h=0)) == {"signals/clip/99999999"}
    assert resumable.exists()
    assert alone.exists(), "an ingest that was interrupted is resumed, however long ago"


def test_leftovers_of_killed_commands_go(tmp_path: Path) -> None:
    put(str(tmp_path), "curated", "train", "11111111")
    folder = tmp_path / "curated/train/11111111"
    left = ["spill/0000/0000000.bin", f"{SHARD}-abcdef01.tar", "0000/.0000000.tar.1f.tmp"]
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left")
    found = collect_garbage(str(tmp_path), min_age_h=0)
    assert found["num_bytes"] == 12
    assert not any((folder / name).exists() for name in left)
    assert (folder / f"{SHARD}.tar").exists()


def test_unfinished_rewrite_is_kept(tmp_path: Path) -> None:
    put(str(tmp_path), "raw", "main", "11111111")
    journal = tmp_path / "raw/main/11111111/rewrite/commit.json"
    journal.parent.mkdir()
    journal.write_text("{}")
    assert collect_garbage(str(tmp_path), min_age_h=0)["garbage"] == []
    assert journal.exists()


def test_it_waits_for_other_commands_and_they_for_it(tmp_path: Path) -> None:
    walk_twice(str(tmp_path))
    with shared_lock(str(tmp_path), "curate"), pytest.raises(InputError, match="curate runs here"):
        collect_garbage(str(tmp_path), min_age_h=0)
    with (
        exclusive_lock(str(tmp_path)),
        pytest.raises(InputError, match="gc runs here"),
        shared_lock(str(tmp_path), "curate"),
    ):
        pass
    with shared_lock(str(tmp_path), "curate"), shared_lock(str(tmp_path), "curate"):
        assert len(running(str(tmp_path))) == 2
    assert not (tmp_path / "running").exists()


def test_a_killed_command_is_no_hindrance(tmp_path: Path) -> None:
    walk_twice(str(tmp_path))
    script = (
        "import os, sys; from pairloom.pipelines.engine.root_lock import shared_lock\n"
        "with shared_lock(sys.argv[1], 'curate'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert len(list((tmp_path / "running").iterdir())) == 1
    assert paths(collect_garbage(str(tmp_path), min_age_h=0)) == UNNEEDED


def test_a_place_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results of pairloom here"):
        collect_garbage(str(tmp_path))
