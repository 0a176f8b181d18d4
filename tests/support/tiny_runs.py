"""Training runs that take seconds: recipes, and the loop started inside ranks that are there already."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pairloom.schemas.recipes.load import apply_override, parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from tests.support.curated_builder import build_curated, colour_pairs

NUM_PAIRS, BATCH = 48, 8
MEASURED = {"samples_per_s", "data_wait_fraction", "memory_bytes"}


def tiny_data(root: str | Path) -> str:
    """A curated data set of three shards."""
    return build_curated(root, colour_pairs(NUM_PAIRS))


def tiny_recipe(run_dir: str | Path, data: str, *overrides: str) -> TrainRecipe:
    """A SigLIP of test size on `data`: 8 samples a step, 4 lanes, 6 steps."""
    settings: dict[str, Any] = {
        "run": {"dir": str(run_dir), "total_samples": 6 * BATCH},
        "task": {"kind": "contrastive", "loss": "siglip"},
        "model": {"preset": "siglip-test-tiny"},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"train": [{"path": data}], "num_lanes": 4, "num_workers": 0},
        "batch": {"global_batch_size": BATCH},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_samples": 16},
    }
    for override in overrides:
        apply_override(settings, override)
    return parse_recipe(settings, TrainRecipe, "test")


def train_in_ranks(recipes: Sequence[TrainRecipe]) -> None:
    """Train one recipe after another in the ranks that call this; for `tests.ranks.run_ranks`."""
    import transformers

    from pairloom.trainers.deepspeed_engine.engine import start_process_group
    from pairloom.trainers.train import train

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    start_process_group()
    for recipe in recipes:
        train(recipe)


def metrics_of(run_dir: str | Path) -> list[dict[str, float]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def results_of(run_dir: str | Path) -> list[dict[str, float]]:
    """The records without what the clock and the machine say."""
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in metrics_of(run_dir)]
