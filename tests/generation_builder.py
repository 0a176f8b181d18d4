"""What the tests of retry and recall share; as a program, it interrupts one of them at every write.

python generation_builder.py REPOSITORY retry|recall RECIPE ROOT SCRATCH prints how many writes there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

from pipelines.honour import honour_tombstones
from pipelines.raw_generation import finish_rewrite
from pipelines.retry import commit_retry, retry_jobs, retry_shard
from schemas import storage
from schemas.curate_recipe import CurateRecipe
from schemas.manifest import ShardEntry, entry_of_table, table_url, tar_url
from schemas.recipe_io import load_recipe
from schemas.sample import read_table
from schemas.shard import ShardReader
from tests.ingest_builder import files_of


def retry_here(recipe: CurateRecipe, folder: str) -> None:
    """Retry in this process, without Ray."""
    finish_rewrite(folder)
    jobs = retry_jobs(recipe, folder)
    for job in jobs:
        retry_shard(job)
    if jobs:
        commit_retry(jobs)


def check_tables_fit(folder: str) -> None:
    """What a reader sees at any moment: the tar that a table names holds its images where it says."""
    for path in sorted(Path(folder, "0000").glob("*.parquet")):
        name = f"0000/{path.stem}"
        table = read_table(table_url(folder, name))
        reader = ShardReader(tar_url(folder, entry_of_table(table, ShardEntry(name, 0, 0, 0))))
        for row in table.to_pylist():
            if row["status"] == "success":
                assert reader.read(row["offset"], row["num_bytes"])[:2] == b"\xff\xd8"
        reader.close()


def _forked(work: Callable[[], None]) -> int:
    """The exit status of `work` in a process of its own."""
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
    """Interrupt at every write, look, finish, and compare with what an undisturbed run gives."""

    def work() -> None:
        folder = str(next((scratch / "raw/main").glob("*/")))
        retry_here(recipe, folder) if operation == "retry" else honour_tombstones(folder)

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
    made = interrupt_everywhere(
        sys.argv[2], load_recipe(sys.argv[3], CurateRecipe), Path(sys.argv[4]), Path(sys.argv[5])
    )
    sys.stdout.write(f"{made}\n")
