"""Training on a real S3 server: data, checkpoints and export lie there, and any machine can go on."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.schemas.storage import listing, storage
from pairloom.schemas.storage import remote as remote_storage
from pairloom.trainers.checkpoints.remote_copy import local_folder
from tests.cluster.test_launch_trainer import SETTINGS, launcher, wait_for_step
from tests.support.s3_server import serve_s3
from tests.support.tiny_runs import results_of, tiny_data, tiny_recipe

BUCKET = "s3://ours"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server of our own, and a cache folder of our own."""
    with serve_s3(tmp_path / "server") as server:
        for name, value in {**server.environment(), "PAIRLOOM_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        remote_storage.forget_connections()
        storage.filesystem("s3://").mkdir("ours")
        yield BUCKET
    remote_storage.forget_connections()


@pytest.mark.slow
def test_killed_run_resumes_from_its_bucket(bucket: str, tmp_path: Path) -> None:
    local = Path(tiny_data(tmp_path / "data"))
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        storage.put_bytes(f"{bucket}/data/{path.relative_to(local)}", path.read_bytes())
    launch_trainer(tiny_recipe(tmp_path / "whole", str(local), *SETTINGS, "zero.stage=2"), num_processes=2)
    data, url = f"{bucket}/data", f"{bucket}/runs/killed"
    with launcher(url, data) as process:
        wait_for_step(local_folder(url), 8)
        wait_for_checkpoint(url)
        os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(tmp_path / "cache")  # another machine
    launch_trainer(tiny_recipe(url, data, *SETTINGS, "zero.stage=2"), num_processes=2)
    there = tmp_path / "there"
    storage.filesystem(url).get(f"{url}/", f"{there}/", recursive=True)
    assert results_of(there) == results_of(tmp_path / "whole")
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (there, tmp_path / "whole")]
    assert weights[0] == weights[1]


def wait_for_checkpoint(url: str) -> None:
    """Until one is complete in the bucket."""
    for _ in range(600):
        storage.filesystem(url).invalidate_cache()
        if any(file.endswith("/manifest.json") for file in listing.expand(f"{url}/checkpoints")):
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} has no checkpoint")
