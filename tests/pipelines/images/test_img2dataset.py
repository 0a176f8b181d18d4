"""img2dataset's resize cases: its Resizer and ours over all modes, sizes and options.

Its requirements conflict with ours, so it needs its own environment: PAIRLOOM_IMG2DATASET_PYTHON names the
interpreter with it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.shared_data import REPOSITORY


@pytest.mark.parametrize("options", [(), ("--fast-decode",)])
def test_sizes_and_pixels_are_those_of_img2dataset(options: tuple[str, ...]) -> None:
    python = os.environ.get("PAIRLOOM_IMG2DATASET_PYTHON")
    if python is None:
        pytest.skip("PAIRLOOM_IMG2DATASET_PYTHON names no interpreter with img2dataset==1.47.0")
    command = [sys.executable, "-m", "benchmarks.resize_parity", "--peer-python", python, *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("cases, 0 of them differ\n")
