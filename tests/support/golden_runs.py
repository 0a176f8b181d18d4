"""Small training runs, one per task and kind of model; their metrics are in `tests/golden/training_runs.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from pairloom.schemas.data_set.manifest import load_manifest, resolve, table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.golden_data import copy_data_set
from tests.support.golden_steps import GOLDEN
from tests.support.tiny_models import write_siglip, write_tokenizer

TRAINING_RUNS = GOLDEN / "training_runs.json"
RUNS = GOLDEN / "run_0_1_0"
FIGURES = ("loss", "grad_norm", "learning_rate", "sample_checksum", "num_patches")
BATCH, NUM_STEPS = 8, 6
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

Settings = dict[str, Any]


def write_inputs(folder: Path) -> None:
    """The data set of release 0.1.0, conversations about its images, and models with random weights."""
    copy_data_set(folder)
    write_siglip(folder / "models/siglip")
    write_tower(folder / "models/vit", "vit", image_size=32, patch_size=8)
    config = Preprocess(32).processor_config("ViTImageProcessor")
    (folder / "models/vit/preprocessor_config.json").write_text(json.dumps(config))
    num_tokens = len(write_tokenizer(folder / "models/bert"))
    write_tower(folder / "models/bert", "bert", max_position_embeddings=16, vocab_size=num_tokens)
    write_conversations(folder)


def write_tower(out: Path, name: str, **settings: int) -> None:
    """A tower with random weights."""
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(name, **TINY, **settings)).save_pretrained(out)


def write_conversations(folder: Path) -> None:
    """Questions about the images, by uid; every fourth conversation has no image."""
    curated = resolve(str(folder / "root/curated/train"))
    tables = [read_table(table_url(curated, shard.name)) for shard in load_manifest(curated).shards]
    records = []
    for index, row in enumerate(row for table in tables for row in table.to_pylist()):
        has_image = index % 4 != 3
        question, answer = "what is in the picture?", f"{row['caption']} {'and more ' * (index % 3)}"
        turns = [
            {"from": "human", "value": f"<image>\n{question}" if has_image else question},
            {"from": "gpt", "value": answer},
        ] + [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": str(index)}] * (index % 2)
        image = {"image": row["uid"]} if has_image else {}
        records.append({"id": str(index), **image, "conversations": turns})
    (folder / "conversations.json").write_text(json.dumps(records, indent=1))


def settings_of_runs(folder: Path) -> dict[str, Settings]:
    """The recipe of each run, on the files of `write_inputs`."""
    models = folder / "models"
    siglip_task = {"kind": "contrastive", "loss": "siglip"}
    parts = {"vision": str(models / "siglip"), "language": "llama-test-tiny"}
    captions = {"path": str(folder / "root/curated/train")}
    conversations = {"path": str(folder / "conversations.json"), "images": captions["path"]}
    dual = {"vision": str(models / "vit"), "text": str(models / "bert"), "projection_dim": 24}
    changes: dict[str, Settings] = {
        "clip": {
            "task": {"kind": "contrastive", "loss": "clip"},
            "model": {"preset": "clip-test-tiny"},
            "data": {"train": [{**captions, "hold_out_fold": [0, 2]}]},
            "batch": {"micro_batch_size": 4},
        },
        "siglip": {},
        "siglip-options": {
            "task": {**siglip_task, "patch_dropout": 0.25},
            "model": {"preset": "siglip-test-tiny", "activation_checkpointing": True, "overrides": {"pooling": "mean"}},
            "batch": {"micro_batch_size": 4},
            "optimizer": {"schedule": "wsd", "decay_samples": 16, "layer_decay": 0.8, "average_decay": 0.9},
            "zero": {"stage": 2},
        },
        "siglip-crops": {"data": {"augment": {"random_resized_crop": [0.5, 1.0]}}, "zero": {"stage": 3}},
        "siglip-lamb": {"optimizer": {"name": "lamb", "learning_rate": 0.01}, "zero": {"stage": 0}},
        "siglip-muon": {"optimizer": {"name": "muon", "schedule": "constant"}, "zero": {"stage": 0}},
        "siglip2-naflex": {
            "model": {"preset": "siglip2-test-tiny", "num_patches": [9, 16]},
            "batch": {"micro_batch_size": 4},
        },
        "locked-vision": {"model": {"path": str(models / "siglip"), "locked": ["vision"]}, "tokenizer": {}},
        "locked-dual": {"model": {"dual": dual, "locked": ["vision", "text"]}, "tokenizer": {}},
        "llava-align": {
            "task": {"kind": "llava", "mode": "align"},
            "model": {"llava": parts},
            "batch": {"micro_batch_size": 4},
        },
        "llava-instruct": {
            "task": {"kind": "llava", "mode": "instruct", "vision_learning_rate": 1e-4},
            "model": {"llava": {**parts, "projector": "linear", "feature_layer": -1}},
            "data": {"train": [conversations, {**captions, "weight": 0.5}]},
            "batch": {"micro_batch_size": 4},
            "zero": {"stage": 2},
        },
        "llava-blind": {
            "task": {"kind": "llava", "mode": "instruct", "blind": True},
            "model": {"llava": parts},
            "data": {"train": [conversations]},
        },
    }
    common: Settings = {
        "run": {"total_samples": NUM_STEPS * BATCH, "seed": 7},
        "task": siglip_task,
        "model": {"preset": "siglip-test-tiny"},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"train": [captions], "num_lanes": 4, "num_workers": 0},
        "batch": {"global_batch_size": BATCH},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_samples": 16},
    }
    whole = {"task", "model", "tokenizer"}  # parts that a run gives as a whole
    return {
        name: {
            **common,
            **{key: value if key in whole else {**common.get(key, {}), **value} for key, value in change.items()},
        }
        for name, change in changes.items()
    }


def recipe_of(settings: Mapping[str, Any], run_dir: Path) -> TrainRecipe:
    """The recipe of one run in its own folder."""
    return parse_recipe({**settings, "run": {**settings["run"], "dir": str(run_dir)}}, TrainRecipe, "test")


def figures_of(run_dir: Path) -> dict[str, list[float]]:
    """The recorded metrics of a run, by step."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: [record[name] for record in records] for name in FIGURES if name in records[0]}
