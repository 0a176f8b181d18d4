"""Checkpoints are written beside the training, to a folder or a URL, and a run killed at any moment goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from pairloom.schemas.errors import StorageError
from pairloom.schemas.images.preprocess import load_preprocess
from pairloom.trainers.checkpoints.remote_copy import local_folder
from pairloom.trainers.checkpoints.safetensors_writer import write_tensors
from pairloom.trainers.open_clip.config import open_clip_config
from pairloom.trainers.open_clip.state_dict_map import clip_moves, convert
from tests.support.curated_builder import build_curated, colour_pairs
from tests.support.ranks import run_ranks
from tests.support.tiny_models import write_clip, write_tokenizer
from tests.support.tiny_runs import BATCH, metrics_of, results_of, tiny_data, tiny_recipe, train_in_ranks

EVERY = f"run.checkpoint_every_samples={2 * BATCH}"


def test_safetensors_reads_a_tensor_file(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3, dtype=torch.int64), "half/a.b": torch.randn(3, 5).to(torch.bfloat16),
        "flags": torch.tensor([True, False]), "none": torch.zeros(0, 4), "big": torch.randn(5_000_000),
    }  # fmt: skip
    digest = write_tensors(tmp_path / "a" / "b.safetensors", tensors, {"pieces": "{}"})
    found = load_file(tmp_path / "a" / "b.safetensors")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    written = subprocess.run(
        ["sha256sum", tmp_path / "a" / "b.safetensors"], capture_output=True, text=True, check=True
    )
    assert written.stdout.split()[0] == digest


def one_rank(folder: Path, data: str) -> Mapping[str, Any]:
    """What the tests below look at, made by one rank: starting it is what costs."""
    os.environ["PAIRLOOM_CACHE"] = str(folder / "cache")
    whole = tiny_recipe(folder / "whole", data, EVERY)
    train_in_ranks([whole])
    results: dict[str, Any] = {"manifest_exists": train_during_checkpoint(folder / "beside", data)}
    (folder / "full").mkdir()
    (folder / "full" / "checkpoints").symlink_to("nowhere")  # no folder can be made there
    try:
        train_in_ranks([tiny_recipe(folder / "full", data, EVERY)])
    except StorageError as error:
        results["full"] = str(error)
    fsspec.config.conf["local"] = {"auto_mkdir": True}  # as object storage, which has no folders
    url = f"local://{folder}/bucket/run"
    train_in_ranks([tiny_recipe(url, data, EVERY, "run.keep_checkpoints=2")])
    results["left"] = sorted(path.relative_to(folder).as_posix() for path in folder.glob("bucket/run/checkpoints/*"))
    write_open_clip(folder / "open_clip")
    begin = (
        f"init_from={folder}/open_clip",
        "task.loss=clip",
        "model.preset=clip-test-tiny",
        "optimizer.learning_rate=0",
    )
    recipe = tiny_recipe(folder / "begun", data, *begin, f"run.total_samples={BATCH}", "tokenizer={}")
    train_in_ranks([recipe])
    lose_machine(folder, url)
    train_in_ranks([tiny_recipe(url, data, EVERY, "run.keep_checkpoints=2")])
    return results


def write_open_clip(folder: Path) -> None:
    """A CLIP as open_clip saves it, with a tokenizer."""
    hf = write_clip(folder / "hf")
    described = open_clip_config(AutoConfig.from_pretrained(hf), load_preprocess(str(hf)))
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    state = convert(load_file(hf / "model.safetensors"), clip_moves(3, 2))
    torch.save({"state_dict": state}, folder / "epoch_1.pt")
    write_tokenizer(folder)


def train_during_checkpoint(run: Path, data: str) -> list[bool]:
    """Whether checkpoints are complete: begun, a step later while the model is still written, and after that."""
    from pairloom.trainers import train as loop
    from pairloom.trainers.checkpoints.run_folder import open_run
    from pairloom.trainers.data.loader import shares

    recipe = tiny_recipe(run, data)
    training = loop.start(recipe, open_run(recipe))
    written, save_model = Event(), training.task.save_model

    def slowly(folder: str, state: Mapping[str, torch.Tensor]) -> None:
        assert written.wait(60)
        save_model(folder, state)

    training.task.save_model = slowly  # type: ignore[method-assign]
    found = []
    manifest = training.writer.begin(training.state) / "manifest.json"
    for share in shares(training.loader, 0, 1, 0):
        found.append(manifest.exists())
        loop.train_step(training, share)
        training.writer.poll()
        found.append(manifest.exists())
    written.set()
    training.writer.finish()
    return [*found, manifest.exists()]


def lose_machine(folder: Path, url: str) -> None:
    """Another machine, on which the URL ends in the middle of the checkpoint of step 6."""
    shutil.rmtree(local_folder(url))
    there = folder / "bucket" / "run"
    shutil.rmtree(there / "export")
    (there / "checkpoints" / "step-0000006" / "manifest.json").unlink()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("made")
    return folder, run_ranks(one_rank, 1, folder, tiny_data(folder / "data"))[0]


def test_training_continues_while_a_checkpoint_is_written(made: tuple[Path, Mapping[str, Any]]) -> None:
    assert made[1]["manifest_exists"] == [False, False, True]


def test_failed_write_stops_the_run_at_the_next_step(made: tuple[Path, Mapping[str, Any]]) -> None:
    assert "step-0000002 could not be written" in made[1]["full"]
    assert len(metrics_of(made[0] / "full")) < 6


def test_run_at_a_url_resumes_on_another_machine(made: tuple[Path, Mapping[str, Any]]) -> None:
    folder, results = made
    assert results["left"] == [f"bucket/run/checkpoints/step-000000{step}" for step in (4, 6)]
    run = folder / "bucket" / "run"
    assert results_of(run) == results_of(folder / "whole")
    for name in ("model.safetensors", "provenance.json", "receipt.json"):
        assert (run / "export" / name).exists()
    assert (run / "export" / "model.safetensors").read_bytes() == (
        folder / "whole" / "export" / "model.safetensors"
    ).read_bytes()
    assert list((run / "tb").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000004", "step-0000006"]


def test_a_run_begins_with_open_clips_weights(made: tuple[Path, Mapping[str, Any]]) -> None:
    folder, _ = made
    before, after = (load_file(folder / name / "model.safetensors") for name in ("open_clip/hf", "begun/export"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the learning rate was 0
    recipe = json.loads((folder / "begun" / "export" / "provenance.json").read_text())["recipe"]
    assert recipe["init_from"] == f"{folder}/open_clip"


NUM_STEPS, NUM_KILLS = 150, 10
LIVES = """
import json, os, sys
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.tiny_models import write_clip, write_tokenizer
from tests.support.tiny_runs import train_in_ranks
import deepspeed, transformers, pairloom.trainers.train, pairloom.trainers.tasks.contrastive
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
recipe = parse_recipe(json.loads(sys.argv[1]), TrainRecipe, "test")
for line in sys.stdin:  # a life for each line: forked, for importing takes longer than the run
    child = os.fork()
    if child == 0:
        train_in_ranks([recipe])
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_killed_ten_times_it_is_the_run_that_was_not_killed(tmp_path: Path) -> None:
    data, others = tiny_data(tmp_path / "data"), build_curated(tmp_path / "others", colour_pairs(10))
    settings = (
        "data.augment.random_resized_crop=[0.5, 1.0]",
        f"data.train=[{{path: {data}, weight: 3}}, {{path: {others}}}]",
        f"run.total_samples={NUM_STEPS * BATCH}",
        f"run.checkpoint_every_samples={3 * BATCH}",
    )
    draw = random.Random(0)
    kills = sorted(draw.sample(range(1, NUM_STEPS - 30), NUM_KILLS))
    for name, steps in (("whole", []), ("killed", kills)):
        recipe = tiny_recipe(tmp_path / name, data, *settings)
        with subprocess.Popen(
            [sys.executable, "-c", LIVES, recipe.model_dump_json()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as lives:
            assert lives.stdin is not None
            assert lives.stdout is not None
            statuses = []
            for step in [*steps, None]:
                lives.stdin.write(b"\n")
                lives.stdin.flush()
                child = int(lives.stdout.readline())
                if step is not None:
                    wait_for_line(tmp_path / name / "metrics.jsonl", step)
                    time.sleep(draw.random() / 20)
                    os.kill(child, signal.SIGKILL)
                statuses.append(int(lives.stdout.readline()))
            lives.stdin.close()
        assert statuses == [signal.SIGKILL] * len(steps) + [0]
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
    exports = [json.loads((tmp_path / name / "export" / "provenance.json").read_text()) for name in ("whole", "killed")]
    assert exports[0]["step"] == exports[1]["step"] == NUM_STEPS
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def wait_for_line(path: Path, step: int) -> None:
    """Until a record of `step` or a later one is there."""
    for _ in range(6000):
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach step {step}")
