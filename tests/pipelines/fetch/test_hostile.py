"""Hostile responses: each gives its drop reason, the rows around it are kept, and the worker survives."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pairloom.pipelines.fetch import transfer
from pairloom.pipelines.ingest.shard import ShardJob, make_shard, write_uids
from pairloom.pipelines.raw.segments import cut_pieces
from pairloom.pipelines.sources import urls as web_address
from pairloom.pipelines.sources.open_source import open_source
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.hostile_http import http_cases
from tests.support.hostile_images import image_cases
from tests.support.hostile_rows import ALL_ROWS, HostileRow, write_tables
from tests.support.hostile_server import Hostile, serve_hostile
from tests.support.image_files import encoded, photo

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "reference" / "hostile_responses.md"
IMAGE = encoded(photo(300, 280))
MAX_MEMORY = 2 << 30  # bytes; the bombs would need far more
FETCH = {"timeout_s": 6, "first_byte_timeout_s": 5, "connect_timeout_s": 4, "retries": 0, "max_bytes": 2_000_000}

Shard = tuple[set[int], int, list[dict[str, Any]]]  # pids of the worker, its peak memory, rows of the hostile shard


@cache
def all_cases() -> list[Hostile]:
    return [*http_cases(IMAGE), *image_cases(IMAGE)]


def treat_the_test_net_as_public() -> None:
    """Treat the servers of this test as public addresses; other addresses are checked as usual."""
    setattr(transfer, "is_public", lambda address: address.startswith("127.1.") or web_address.is_public(address))  # noqa: B010


def run_shard(recipe: CurateRecipe, folder: str) -> tuple[int, list[dict[str, Any]]]:
    """Make one shard as a worker does. Returns the process id and the rows of the table."""
    source = open_source(recipe.source)
    staging = f"{folder}/staged"
    files = [replace(file, num_rows=source.prepare(file, staging).num_rows) for file in source.list_files()]
    readable = [source.readable(file, staging) for file in files]
    [pieces] = cut_pieces(files, readable, recipe.ingest.samples_per_shard)
    job = ShardJob(recipe.source, recipe.ingest, folder, 0, pieces)
    write_uids(job)
    make_shard(job)
    return os.getpid(), read_table(table_url(folder, job.name)).to_pylist()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """The hostile shard between two good ones, all made by one worker process."""
    folder = tmp_path_factory.mktemp("hostile")
    context = multiprocessing.get_context("spawn")
    with (
        serve_hostile(all_cases(), IMAGE) as server,
        ProcessPoolExecutor(1, mp_context=context, initializer=treat_the_test_net_as_public) as worker,
    ):
        paths = write_tables(folder, server.good_url, server.urls())
        good = folder / "good.csv"
        good.write_text("url,caption\n" + "".join(f"{server.good_url}?{index},good\n" for index in range(20)))
        runs = [
            worker.submit(run_shard, make_recipe(folder, tables), str(folder / name)).result(120)
            for name, tables in (("before", [str(good)]), ("hostile", paths), ("after", [str(good)]))
        ]
        peak = worker.submit(peak_memory).result()
    assert [row["status"] for row in runs[0][1] + runs[2][1]] == ["success"] * 40
    return {pid for pid, _ in runs}, peak, runs[1][1]


def make_recipe(folder: Path, tables: list[str]) -> CurateRecipe:
    source = {"kind": "url_table", "path": tables}
    return CurateRecipe.model_validate({"root": str(folder), "source": source, "ingest": {"fetch": FETCH}})


def peak_memory() -> int:
    """Peak memory of this process, bytes; `getrusage` would include that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_each_has_its_reason(shard: Shard) -> None:
    cases = all_cases()
    rows = shard[2]
    assert len(rows) == 2 * len(cases) + len(ALL_ROWS)
    found = {case.name: row for case, row in zip(cases, rows[0 : 2 * len(cases) : 2], strict=True)}
    found |= {case.name: row for case, row in zip(ALL_ROWS, rows[2 * len(cases) :], strict=True)}
    assert len(found) == len(cases) + len(ALL_ROWS), "names are unique"
    every: list[Hostile | HostileRow] = [*cases, *ALL_ROWS]
    expected = {case.name: case.reason for case in every}
    wrong = {
        name: (row["drop_reason"], expected[name], row["error_message"])
        for name, row in found.items()
        if row["drop_reason"] != expected[name]
    }
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    captions = {row.name: found[row.name]["caption"] for row in ALL_ROWS if row.found is not None}
    assert captions == {row.name: row.found for row in ALL_ROWS if row.found is not None}


def test_the_rows_around_are_kept(shard: Shard) -> None:
    around = shard[2][1 : 2 * len(all_cases()) : 2]
    assert [row["caption"] for row in around] == [f"good {index}" for index in range(len(around))]
    assert {row["status"] for row in around} == {"success"}


def test_the_worker_lives_on(shard: Shard) -> None:
    pids, peak, _ = shard
    assert len(pids) == 1
    assert peak < MAX_MEMORY


def document() -> str:
    """docs/reference/hostile_responses.md."""
    cases: list[Hostile | HostileRow] = [*all_cases(), *ALL_ROWS]
    lines = [
        "# Hostile responses",
        "",
        "What `tests/pipelines/fetch/test_hostile.py` sends to a worker, byte for byte, and the drop reason of the",
        "row. The rows before and after it are kept, and the worker continues. The test's own table makes this page:",
        "`python -m tests.pipelines.fetch.test_hostile`.",
        "",
        "| response | in detail | drop reason |",
        "| --- | --- | --- |",
    ]
    for case in cases:
        reason = f"`{case.reason}`" if case.reason else "none: kept"
        lines.append(f"| {case.name} | {case.what.replace('|', chr(92) + '|')} | {reason} |")
    return "\n".join([*lines, "", f"{len(cases)} cases.", ""])


def test_the_document_is_up_to_date() -> None:
    assert len([*all_cases(), *ALL_ROWS]) >= 60
    assert DOCUMENT.read_text() == document(), "run python -m tests.pipelines.fetch.test_hostile"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
