"""Losses of release 0.1.0: tiny runs of every task take the same samples and give the same figures, step by step.

`python -m tests.golden.make_training_runs` writes `tests/golden/training_runs.json` anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.golden_runs import TRAINING_RUNS, figures_of, recipe_of, settings_of_runs, write_inputs
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import train_in_ranks

EXPECTED: dict[str, dict[str, list[float]]] = json.loads(TRAINING_RUNS.read_text())
TOLERANCE = {"loss": 1e-5, "grad_norm": 1e-4, "learning_rate": 1e-9, "sample_checksum": 0, "num_patches": 0}
"""Processors with other vectors sum in another order; norms of gradients feel it more than losses."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, in one process."""
    root = tmp_path_factory.mktemp("golden")
    write_inputs(root)
    settings = settings_of_runs(root)
    run_ranks(train_in_ranks, 1, [recipe_of(settings[name], root / "runs" / name) for name in EXPECTED])
    return root / "runs"


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_figures(runs: Path, name: str) -> None:
    found = figures_of(runs / name)
    assert found.keys() >= EXPECTED[name].keys()
    for figure, values in EXPECTED[name].items():
        assert found[figure] == pytest.approx(values, rel=TOLERANCE[figure], abs=0), figure


@pytest.mark.parametrize("name", EXPECTED)
def test_every_run_is_exported(runs: Path, name: str) -> None:
    receipt = json.loads((runs / name / "export" / "receipt.json").read_text())
    assert receipt["largest_output_difference"] < 1e-5
