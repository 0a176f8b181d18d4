"""Shared parts of retry and recall tests; as a program, it interrupts one of them at every write.

python -m tests.support.generation_builder retry|recall RECIPE ROOT SCRATCH prints how many writes there were.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairloom.pipelines.ingest.retry import commit_retry, retry_jobs, retry_shard
from pairloom.pipelines.optout.apply import apply_tombstones
from pairloom.pipelines.optout.rules import Rules, parse_request
from pairloom.pipelines.raw.generation import finish_rewrite
from pairloom.schemas.data_set.manifest import ShardEntry, entry_of_table, load_manifest, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.storage import listing, storage
from tests.support.http_server import TestServer
from tests.support.ingest_builder import (
    changes,
    check_offsets,
    check_webdataset,
    files_of,
    make_recipe,
    read_rows,
    url_source,
    write_csv,
)

NUM_ROWS = 20
FAILING = {0: 503, 5: 503, 9: 429, 19: 503}  # rows that fail once
HOPELESS = {6: 404, 12: 503}
GONE = {6: "http_not_found", 12: "http_server_error"}
OPTED_OUT = (1, 2, 9, 14)  # rows under the host `localhost`


def source_rows(web: TestServer) -> list[dict[str, str]]:
    """20 URLs: some fail once, some always, some are of another host; rows 3 and 14 have one image."""
    rows = []
    for index in range(NUM_ROWS):
        path = f"files/{3 if index == 14 else index}.jpg"
        path = f"flaky/1/{index}.jpg?status={FAILING[index]}" if index in FAILING else path
        path = f"status/{HOPELESS[index]}?{index}" if index in HOPELESS else path
        base = web.url.replace("127.0.0.1", "localhost") if index in OPTED_OUT else web.url
        rows.append({"url": f"{base}/{path}", "caption": f"a picture of thing {index}", "license": f"cc-{index}"})
    return rows


def recipe_on(tmp_path: Path, web: TestServer, name: str = "out", **settings: Any) -> CurateRecipe:
    table = tmp_path / "urls" / "a.csv"
    if not table.exists():
        table.parent.mkdir()
        write_csv(table, source_rows(web))
    source = url_source(table.parent, keep_columns=["license"])
    return make_recipe(tmp_path / name, source, fetch={"retries": 0, "timeout_s": 5}, **settings)


def reasons_of(folder: str) -> dict[int, str]:
    tables = [read_table(table_url(folder, shard.name), ["drop_reason"]) for shard in load_manifest(folder).shards]
    reasons = [reason for table in tables for reason in table["drop_reason"].to_pylist()]
    return {index: reason for index, reason in enumerate(reasons) if reason}


def check_raw(folder: str) -> None:
    """Check that every image is at the offset in its table, and that no old tar or temporary file is left."""
    manifest, rows = load_manifest(folder), read_rows(folder)
    check_offsets(folder, manifest, rows)
    check_webdataset(folder, manifest, rows)
    tars = {str(path.relative_to(folder)) for path in Path(folder).rglob("*.tar")}
    assert tars == {str(Path(tar_url(folder, shard)).relative_to(folder)) for shard in manifest.shards}
    assert set(json.loads((Path(folder) / "sizes.json").read_text())) <= tars
    assert not (Path(folder) / "rewrite").exists()


def files(folder: str | Path) -> dict[str, int]:
    return {path: time_ns for path, time_ns in changes(Path(folder)).items() if Path(path).is_file()}


def request(kind: str, *values: str) -> Rules:
    return parse_request(kind, values, "request.txt")


def bytes_below(root: str) -> bytes:
    return b"".join(storage.read_bytes(url) for url in listing.expand(root))


def image_of(folder: str, row: int) -> bytes:
    place = row
    for shard in load_manifest(folder).shards:
        if place < shard.num_rows:
            values = read_table(table_url(folder, shard.name)).slice(place, 1).to_pylist()[0]
            return ShardReader(tar_url(folder, shard)).read(values["offset"], values["num_bytes"])
        place -= shard.num_rows
    raise AssertionError("no such row")


def retry_here(recipe: CurateRecipe, folder: str) -> None:
    """Retry in this process, without Ray."""
    finish_rewrite(folder)
    jobs = retry_jobs(recipe, folder)
    for job in jobs:
        retry_shard(job)
    if jobs:
        commit_retry(jobs)


def check_tables_fit(folder: str) -> None:
    """Check that the tar of each table has the images at the offsets of the table."""
    for path in sorted(Path(folder, "0000").glob("*.parquet")):
        name = f"0000/{path.stem}"
        table = read_table(table_url(folder, name))
        reader = ShardReader(tar_url(folder, entry_of_table(table, ShardEntry(name, 0, 0, 0))))
        for row in table.to_pylist():
            if row["status"] == "success":
                assert reader.read(row["offset"], row["num_bytes"])[:2] == b"\xff\xd8"
        reader.close()


def _forked(work: Callable[[], None]) -> int:
    """The exit status of `work` in a child process."""
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return os.waitpid(process, 0)[1]


def _killed_at(write: int, work: Callable[[], None]) -> None:
    """Run `work` until it has done this many renames and removals; then kill -9."""
    num_done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            nonlocal num_done
            if num_done == write:
                os.kill(os.getpid(), signal.SIGKILL)
            num_done += 1
            return call(*arguments)

        return wrapper

    os.replace = counted(os.replace)
    storage.remove = counted(storage.remove)
    work()


def interrupt_everywhere(operation: str, recipe: CurateRecipe, root: Path, scratch: Path) -> int:
    """Interrupt at every write, check, finish, and compare with an uninterrupted run."""

    def work() -> None:
        folder = str(next((scratch / "raw/main").glob("*/")))
        retry_here(recipe, folder) if operation == "retry" else apply_tombstones(folder)

    expected: dict[str, bytes] = {}
    for write in range(-1, 100):  # -1: undisturbed
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(root, scratch)
        status = _forked(lambda at=write: _killed_at(at, work))  # type: ignore[misc]
        assert status in (0, signal.SIGKILL), f"write {write}: {status}"
        check_tables_fit(str(next((scratch / "raw/main").glob("*/"))))
        assert _forked(work) == 0
        expected = expected or files_of(scratch / "raw")
        assert files_of(scratch / "raw") == expected, f"interrupted at write {write}"
        if status == 0 and write >= 0:
            return write
    raise AssertionError("more writes than expected")


if __name__ == "__main__":
    operation, recipe, root, scratch = sys.argv[1:]
    made = interrupt_everywhere(operation, load_recipe(recipe, CurateRecipe), Path(root), Path(scratch))
    sys.stdout.write(f"{made}\n")
