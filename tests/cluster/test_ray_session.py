"""The local Ray: an error that it raises is one line, and its workers import nothing from the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = "from pairloom.cluster.ray_session import start_ray; start_ray()"


def test_a_local_ray_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    (tmp_path / "images" / "a.txt").write_text("a caption")
    (tmp_path / "recipe.yaml").write_text(f"root: {tmp_path}/root\nsource: {{kind: folder, path: {tmp_path}/images}}\n")
    command: list[str | Path] = [Path(sys.executable).parent / "pairloom", "curate", tmp_path / "recipe.yaml"]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / "file")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("pairloom: Ray does not start on this machine after 3 attempts (")


@pytest.mark.slow
def test_workers_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('a file of the user was imported')")
    code = (
        f"{START}\nimport ray\n"
        "def look():\n    import queue, sys\n    return queue.__file__, sys.path\n"
        "print(ray.get(ray.remote(look).remote()))"
    )
    command = [sys.executable, "-P", "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path) not in ended.stdout
