"""Starting the ranks: what they raise comes out, signals save, and a killed run goes on with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.schemas.errors import UserError
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe

NUM_STEPS = 60
SETTINGS = (f"run.total_samples={NUM_STEPS * BATCH}", f"run.checkpoint_every_samples={5 * BATCH}", "data.num_workers=1")
SCRIPT = """
import json, sys
from pairloom.schemas.errors import UserError
from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
address = sys.argv[2] if len(sys.argv) > 2 else None
try:
    launch_trainer(parse_recipe(json.loads(sys.argv[1]), TrainRecipe, "test"), num_processes=2, ray_address=address)
except UserError as error:
    sys.exit(f"UserError {error}")
"""


@contextmanager
def launcher(run: Path | str, data: str) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher with two ranks in a process of its own."""
    recipe = tiny_recipe(run, data, *SETTINGS, "zero.stage=2")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, recipe.model_dump_json()])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_step(run: Path, step: int) -> None:
    """Until metrics.jsonl has reached a step."""
    for _ in range(1200):
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach step {step}")


@pytest.mark.slow
def test_killed_stopped_and_whole_runs_are_equal(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    launch_trainer(tiny_recipe(tmp_path / "whole", data, *SETTINGS, "zero.stage=2"), num_processes=2)
    run = tmp_path / "killed"
    with launcher(run, data) as process:
        wait_for_step(run, 8)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len((run / "metrics.jsonl").read_text().splitlines()) < NUM_STEPS
    with launcher(run, data) as process:
        wait_for_step(run, 20)
        process.terminate()
        assert process.wait(60) != 0
    stopped_at = len(metrics_of(run))
    assert stopped_at < NUM_STEPS
    assert (run / "checkpoints" / f"step-{stopped_at:07d}" / "manifest.json").exists()
    launch_trainer(tiny_recipe(run, data, *SETTINGS, "zero.stage=2"), num_processes=2)
    assert results_of(run) == results_of(tmp_path / "whole")
    weights = Path("export", "model.safetensors")
    assert (run / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.slow
def test_errors_of_ranks_come_out(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    with pytest.raises(UserError, match="4 cannot be dealt out to 3 ranks"):
        launch_trainer(tiny_recipe(tmp_path / "run", data), num_processes=3)


@pytest.mark.slow
def test_ray_train_runs_the_same_entry_point(tmp_path: Path, ray_session: None) -> None:
    data = tiny_data(tmp_path / "data")
    launch_trainer(tiny_recipe(tmp_path / "local", data), num_processes=2)
    # In a process of its own, as users join a cluster: what Ray Train leaves in a driver breaks at a later fork.
    recipe = tiny_recipe(tmp_path / "ray", data).model_dump_json()
    address = ray.get_runtime_context().gcs_address
    subprocess.run([sys.executable, "-c", SCRIPT, recipe, address], check=True, timeout=300)
    assert results_of(tmp_path / "ray") == results_of(tmp_path / "local")
    lost = tiny_recipe(tmp_path / "lost", "/nowhere/Error: lost").model_dump_json()
    failed = subprocess.run([sys.executable, "-c", SCRIPT, lost, address], capture_output=True, text=True, timeout=300)
    assert "UserError /nowhere/Error: lost: no complete data set" in " ".join(failed.stderr.split())
    assert not list((tmp_path / "lost").glob("errors*"))
    provenance = json.loads((tmp_path / "ray" / "export" / "provenance.json").read_text())
    assert provenance["step"] == 6
