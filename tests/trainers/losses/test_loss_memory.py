"""What the losses hold: features and one block, never all logits."""

import json
import subprocess
import sys

import pytest

from tests.support.shared_data import REPOSITORY

BENCHMARK = [sys.executable, "-m", "benchmarks.loss_memory"]
SAMPLES, WIDTH = 8_192, 32


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_step_never_holds_all_logits(loss: str) -> None:
    command = [*BENCHMARK, "--samples", str(SAMPLES), "--width", str(WIDTH), "--loss", loss]
    measured = json.loads(
        subprocess.run([*command, "--in-process"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    )
    assert measured["bytes"] < 4 * SAMPLES**2 / 2  # half of one copy of the logits; the plain form makes several


def test_64k_samples_over_8_ranks_take_less_than_400_mb_each() -> None:
    command = [
        sys.executable,
        "-c",
        "from benchmarks.loss_memory import count_bytes as c; print(sum(c(8192, 512, 8).values()))",
    ]
    found = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    assert int(found) < 400_000_000
