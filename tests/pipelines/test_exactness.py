"""Equal responses give equal bytes: for any number of workers, with failures and retries, after any kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import load_manifest, resolve
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from tests.support.ingest_builder import write_csv
from tests.support.killable_web import (
    ROWS_PER_SHARD,
    Server,
    digests,
    environment,
    ingest_with,
    rows_of,
    table,
    undisturbed,
    web,
    write_recipe,
)

__all__ = ["table", "undisturbed", "web"]  # fixtures

NUM_KILLS = 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """Run the command as a user does."""
    command: list[str | Path] = [
        Path(sys.executable).parent / "pairloom",
        "curate",
        str(recipe),
        "--only",
        "ingest",
        *overrides,
    ]
    return subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_every_row_is_there_with_its_end(undisturbed: Path, web: Server) -> None:
    manifest = load_manifest(str(undisturbed))
    tables = [pq.read_table(undisturbed / f"{shard.name}.parquet") for shard in manifest.shards]
    rows = [row for one in tables for row in one.to_pylist()]
    assert [row["url"] for row in rows] == [row["url"] for row in rows_of(web, 0, 600)]
    for shard, one in zip(manifest.shards, tables, strict=True):
        reasons = Counter(one["drop_reason"].drop_null().to_pylist())
        assert shard.num_samples + sum(reasons.values()) == shard.num_rows == one.num_rows
    counts = Counter(row["drop_reason"] for row in rows)
    kept = counts.pop(None)
    assert counts == manifest.drop_counts
    assert kept + sum(counts.values()) == manifest.num_rows == 600
    assert counts == {"http_not_found": 19, "not_an_image": 19, "empty_caption": 15, "duplicate_row": 1}


@pytest.mark.parametrize("num_cpus", [1, 8])
def test_any_number_of_workers(undisturbed: Path, table: Path, tmp_path: Path, num_cpus: int) -> None:
    """One or eight workers, with another concurrency and order of arrival, and all failures."""
    recipe = write_recipe(tmp_path, table)
    other = ingest_with(recipe, num_cpus, f"ingest.fetch.concurrency={1 + 63 // num_cpus}", "ingest.fetch.retries=3")
    assert digests(other) == digests(undisturbed)


def first_shards(digests_by_name: dict[str, str], num: int) -> dict[str, str]:
    """Tars and tables of the first shards."""
    return {name: digest for name, digest in digests_by_name.items() if name[:5] == "0000/" and int(name[5:12]) < num}


def test_appended_and_changed_files(web: Server, undisturbed: Path, tmp_path: Path, ray_session: None) -> None:
    urls = tmp_path / "urls"
    urls.mkdir()
    write_csv(urls / "b.csv", rows_of(web, 0, 600)[: 3 * ROWS_PER_SHARD])
    recipe = load_recipe(str(write_recipe(tmp_path, urls)), CurateRecipe)
    folder = Path(ingest(recipe))
    shards = first_shards(digests(undisturbed), 3)
    assert first_shards(digests(folder), 99) == shards, "a shard depends on its rows, not on the others"
    times = {name: (folder / name).stat().st_mtime_ns for name in shards}
    write_csv(urls / "a.csv", rows_of(web, 1000, 30))
    assert Path(ingest(recipe)) == folder
    assert {name: (folder / name).stat().st_mtime_ns for name in shards} == times, "only the new file is processed"
    assert [shard.num_rows for shard in load_manifest(str(folder)).shards] == [ROWS_PER_SHARD] * 4 + [5]
    write_csv(urls / "a.csv", rows_of(web, 1000, 31))
    with pytest.raises(InputError, match=rf"{urls}/a\.csv: has changed since it was ingested"):
        ingest(recipe)


def test_killed_at_any_moment(web: Server, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of workers, of the server, and of the command with its whole Ray, 20 times in all."""
    draw = random.Random(20)
    recipe = write_recipe(tmp_path, table)
    victims = ["worker"] * 8 + ["server"] * 7 + ["command"] * 5
    draw.shuffle(victims)
    killed: Counter[str] = Counter()
    process = start(recipe)
    for victim in victims:
        process = _wait_for_work(process, recipe)
        time.sleep(draw.uniform(0, 0.6))
        killed[victim] += _kill(victim, process, web)
        if victim == "command":
            process = start(recipe)
    for _ in range(5):
        _, errors = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert "run the same command again" in errors, "a shard whose worker was killed again and again"
        process = start(recipe)
    assert process.returncode == 0, errors
    assert killed.total() == NUM_KILLS, killed
    folder = Path(resolve(str(tmp_path / "out/raw/main")))
    assert digests(folder) == digests(undisturbed)
    assert not list(folder.rglob("*.tmp"))


def _wait_for_work(process: subprocess.Popen[str], recipe: Path) -> subprocess.Popen[str]:
    """Wait until a worker makes a shard; restart the command if it ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.returncode != 0, "the ingest ended before all kills; give it more rows"
            process = start(recipe)
        if _workers(process) and any(recipe.parent.glob("out/raw/main/*/uids/0000/*23.npy")):
            return process
        time.sleep(0.05)
    raise AssertionError("no worker has begun")


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's worker processes that run a task."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.cmdline()[:1] == ["ray::run_one"]:
                    found.append(child)
    return found


def _kill(victim: str, process: subprocess.Popen[str], web: Server) -> int:
    """Kill one; returns 1."""
    if victim == "server":
        web.kill()
        time.sleep(0.3)
        web.start()
    elif victim == "worker":
        while not (workers := _workers(process)):
            time.sleep(0.01)
        workers[0].kill()
    else:
        everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.communicate()
    return 1


def test_rows_of_a_dead_server_end_and_can_be_fetched_later(web: Server, undisturbed: Path, tmp_path: Path) -> None:
    """A refused connection is an answer: the network works, so that the rows end with their reason."""
    rows = write_csv(tmp_path / "a.csv", rows_of(web, 0, 600)[: 3 * ROWS_PER_SHARD])
    recipe = write_recipe(tmp_path, rows)
    web.kill()
    process = start(recipe, "ingest.fetch.retries=0")
    _, errors = process.communicate(timeout=120)
    web.start()
    assert process.returncode == 0, errors
    root = str(tmp_path / "out/raw/main")
    assert load_manifest(resolve(root)).drop_counts["connection_error"] > 2 * ROWS_PER_SHARD
    assert start(recipe, "--retry", "transient").wait(timeout=300) == 0
    assert images_of(Path(resolve(root)), 3) == images_of(undisturbed, 3)


def images_of(folder: Path, num_shards: int) -> list[tuple[str, str, str | None]]:
    """Uid, drop reason and image hash of each row of the first shards."""
    columns = ["uid", "drop_reason", "image_sha256"]
    tables = [pq.read_table(folder / f"0000/{shard:07d}.parquet", columns=columns) for shard in range(num_shards)]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]
