"""All steps on a cluster: equal bytes on one node, on several nodes, and after the loss of a node."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.raw_builder import encoded, photograph

NUM_PICTURES = 160
STEPS = ("raw", "dedupe", "balance", "selections", "curated")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions; every fourth has a copy of lower quality."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(NUM_PICTURES):
        (folder / f"{seed:03d}.jpg").write_bytes(encoded(photograph(seed)))
        (folder / f"{seed:03d}.txt").write_text(f"a picture of {'red' if seed % 3 else 'blue'} blobs number {seed}")
        if seed % 4 == 0:
            (folder / f"{seed:03d}copy.jpg").write_bytes(encoded(photograph(seed), quality=60))
            (folder / f"{seed:03d}copy.txt").write_text(f"a copy of blobs number {seed}")
    return folder


def walk(pictures: Path, root: Path, *options: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all steps in another process. Returns its report, and the sha256 of every table and tar."""
    command = [sys.executable, "-m", "tests.support.several_nodes", str(pictures), str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [path for step in STEPS for path in (root / step).rglob("*") if path.suffix in (".tar", ".parquet")]
    digests = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray also writes there
    return json.loads(told[-1]), digests


@pytest.mark.slow
def test_any_number_of_nodes_and_a_lost_one_give_the_same_bytes(tmp_path: Path, pictures: Path) -> None:
    told, expected = walk(pictures, tmp_path / "one")
    assert told["nodes"] == [0]
    assert {name.partition("/")[0] for name in expected} == set(STEPS)
    told, files = walk(pictures, tmp_path / "two", "--nodes", "2", "--cpus", "4")
    assert told["nodes"] == [0, 1]
    assert files == expected
    for step in ("dedupe", "reshard"):
        told, files = walk(pictures, tmp_path / step, "--nodes", "2", "--kill", step)
        assert (told["nodes"], told["killed_in"]) == ([0, 1], step)
        assert files == expected
