"""Export: a folder that loads where pairloom is not installed, with provenance and receipt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.export.hugging_face import export
from pairloom.trainers.tasks.llava import build_llava_task
from tests.support.tiny_models import write_clip, write_siglip, write_tokenizer

FAMILIES = ("siglip", "clip", "llava")


def settings_of(family: str, run_dir: Path) -> dict[str, Any]:
    parts = {"vision": str(run_dir / "siglip"), "language": "llama-test-tiny"}
    return {
        "run": {"dir": str(run_dir), "total_samples": 8},
        "task": {"kind": "llava", "mode": "align"} if family == "llava" else {"kind": "contrastive", "loss": family},
        "model": {"llava": parts} if family == "llava" else {"preset": f"{family}-test-tiny"},
        "data": {"train": [{"path": str(run_dir / "talk.json")}]},
        "batch": {"global_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3},
    }


def write_run(run_dir: Path, family: str) -> str:
    """A run folder with the complete checkpoint of step 4 and a torn one of step 8."""
    settings = settings_of(family, run_dir)
    checkpoint = run_dir / "checkpoints/step-0000004"
    model = checkpoint / "model"
    model.mkdir(parents=True)
    (run_dir / "talk.json").write_text("[]")
    write_tokenizer(run_dir / "tokenizer")
    if family == "llava":
        write_siglip(run_dir / "siglip")
        recipe = parse_recipe(settings, TrainRecipe, where="test")
        task = build_llava_task(recipe, str(run_dir / "tokenizer"))
        task.save_model(str(model), task.model.state_dict())
    else:
        (write_siglip if family == "siglip" else write_clip)(model)
    (checkpoint / "state.json").write_text(json.dumps({"step": 4, "samples_seen": 32}))
    (checkpoint / "manifest.json").write_text("{}")
    (run_dir / "checkpoints/step-0000008/model").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return str(run_dir)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    return Path(export(write_run(root / "run", request.param), str(root / "out")))


def test_receipt(exported: Path) -> None:
    receipt = json.loads((exported / "receipt.json").read_text())
    assert receipt["largest_output_difference"] == 0
    assert receipt["largest_pixel_difference"] < 1e-6
    assert receipt["num_texts_that_differ"] == 0
    assert receipt.get("num_prompts_that_differ", 0) == 0
    assert receipt["num_parameters"] > 10_000


def test_provenance(exported: Path) -> None:
    provenance = json.loads((exported / "provenance.json").read_text())
    assert (provenance["step"], provenance["samples_seen"], provenance["parent"]) == (4, 32, None)
    assert len(provenance["data"][0]["manifest_hash"]) == 64
    assert parse_recipe(provenance["recipe"], TrainRecipe, where="provenance").run.total_samples == 8
    assert provenance["code_version"]


LOAD_ALONE = """
import sys
sys.modules.update(dict.fromkeys(("schemas", "trainers", "pipelines", "cluster")))  # importing them fails
import json, transformers
from PIL import Image
folder = sys.argv[1]
config = json.load(open(folder + "/config.json"))
model = getattr(transformers, config["architectures"][0]).from_pretrained(folder)
image = Image.new("RGB", (50, 40), (200, 30, 30))
if config["model_type"] == "llava":
    processor = transformers.LlavaProcessor.from_pretrained(folder)
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    text = processor.apply_chat_template(ask, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
    assert type(transformers.AutoModelForImageTextToText.from_pretrained(folder)) is type(model)
else:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = json.load(open(folder + "/preprocessor_config.json"))["image_processor_type"]
    processor = getattr(transformers, name + "Pil").from_pretrained(folder)
    texts = tokenizer(["a dog", "a cat"], padding="max_length", max_length=16, return_tensors="pt")
    pixels = processor(images=[image], return_tensors="pt")
    assert model(input_ids=texts["input_ids"], **pixels).logits_per_image.shape == (1, 2)
"""


@pytest.mark.slow
def test_loads_where_pairloom_is_not(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD_ALONE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), str(exported)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_weights_that_do_not_fit_stop_the_export(tmp_path: Path) -> None:
    """A tensor that is missing would be filled with random numbers by a lenient loader."""
    run = write_run(tmp_path / "run", "siglip")
    weights = tmp_path / "run/checkpoints/step-0000004/model/model.safetensors"
    state = load_file(weights)
    state.pop("vision_model.post_layernorm.bias")
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"post_layernorm\.bias"):
        export(run, str(tmp_path / "out"))
    assert not (tmp_path / "out/provenance.json").exists()


def test_only_complete_checkpoints(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "siglip")
    with pytest.raises(InputError, match="there are 4"):
        export(run, str(tmp_path / "out"), step=8)
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    with pytest.raises(InputError, match="no complete checkpoint"):
        export(run, str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        export(str(tmp_path), str(tmp_path / "out"))


def test_parent_is_carried(tmp_path: Path) -> None:
    first = export(write_run(tmp_path / "run", "siglip"), str(tmp_path / "first"))
    run = tmp_path / "run"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "init_from": first}))
    second = export(str(run), str(tmp_path / "second"))
    assert json.loads(Path(second, "provenance.json").read_text())["parent"]["step"] == 4
    assert torch.equal(*(load_file(f"{folder}/model.safetensors")["logit_scale"] for folder in (first, second)))
