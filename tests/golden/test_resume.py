"""Runs that release 0.1.0 has begun go on: same samples, same losses, and their checkpoints can be loaded and exported.

`python -m tests.golden.make_runs` has written `tests/golden/run_0_1_0` at that release.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlavaForConditionalGeneration, SiglipModel

from tests.support.golden_data import copy_data_set
from tests.support.golden_runs import RUNS, figures_of

EXPECTED: dict[str, Any] = json.loads((RUNS / "expected.json").read_text())
MODELS = {"siglip": SiglipModel, "llava": LlavaForConditionalGeneration}
TOLERANCE = {"loss": 1e-5, "grad_norm": 1e-4, "learning_rate": 1e-9, "sample_checksum": 0}
NUM_STEPS, LAST_STEP = 6, 2  # of the whole run, and when it was interrupted
CHECKPOINT = f"checkpoints/step-{LAST_STEP:07d}"
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", EXPECTED)]


def pairloom(folder: Path, *arguments: str) -> str:
    """What a command that must succeed has printed."""
    command: list[str | Path] = [Path(sys.executable).parent / "pairloom", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, and the runs after they went on with the command that began them."""
    folder = tmp_path_factory.mktemp("release")
    copy_data_set(folder)
    shutil.copytree(RUNS, folder, dirs_exist_ok=True)
    for name, run in EXPECTED.items():
        pairloom(folder, "train", f"{name}.yaml", "--num-processes", str(run["num_processes"]))
    return folder


def test_run_resumes(folder: Path, name: str) -> None:
    found = figures_of(folder / "runs" / name)
    for figure, values in EXPECTED[name]["figures"].items():
        assert len(values) == NUM_STEPS
        assert found[figure][:LAST_STEP] == values[:LAST_STEP], figure
        assert found[figure] == pytest.approx(values, rel=TOLERANCE[figure], abs=0), figure


def test_the_old_checkpoint_stays_as_it_was(folder: Path, name: str) -> None:
    checkpoint = RUNS / "runs" / name / CHECKPOINT
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in files:
        assert (folder / "runs" / name / CHECKPOINT / path.relative_to(checkpoint)).read_bytes() == path.read_bytes()


def test_the_old_checkpoint_loads_in_plain_transformers(folder: Path, name: str) -> None:
    model = folder / "runs" / name / CHECKPOINT / "model"
    _, loading = MODELS[name].from_pretrained(model, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert len(AutoTokenizer.from_pretrained(model)) > 200


def test_the_old_checkpoint_is_exported(folder: Path, name: str) -> None:
    out = folder / "exports" / name
    arguments = ("--format", "hf", "--step", str(LAST_STEP), "--out", str(out), "--json")
    told = json.loads(pairloom(folder, "export", f"runs/{name}", *arguments))
    assert told["largest_output_difference"] < 1e-5
    old = RUNS / "runs" / name / CHECKPOINT / "model" / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == old.read_bytes()


def test_inspect_shows_the_old_run(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(RUNS / "runs" / name, tmp_path / "run")
    shown = json.loads(pairloom(tmp_path, "inspect", "run", "--json"))
    assert shown["newest"]["step"] == LAST_STEP
    assert shown["checkpoints"] == [Path(CHECKPOINT).name]
