"""Find the checkpoint of a run to export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class CheckpointFolder:
    """A complete checkpoint and its run."""

    run_dir: str
    url: str
    recipe: TrainRecipe
    state: dict[str, Any]  # state.json: step, samples_seen, ...
    averaged: bool = False

    @property
    def model_url(self) -> str:
        """URL of the Hugging Face folder: the model, or its averaged weights."""
        return storage.join(self.url, "average" if self.averaged else "model")


def find_checkpoint(run_dir: str, step: int | None, averaged: bool = False) -> CheckpointFolder:
    """Find the complete checkpoint of `step`, or the newest one if `step` is None.

    With `averaged`, the averaged weights are exported. Raises InputError when the run, the step or the averaged weights
    do not exist; the message lists the available steps.
    """
    recipe_url = storage.join(run_dir, "recipe.yaml")
    if not storage.exists(recipe_url):
        raise InputError(f"{run_dir}: no recipe.yaml; name the run.dir of a training run")
    complete = {
        _step_of(url): url
        for url in storage.list_files(storage.join(run_dir, "checkpoints"))
        if storage.name_of(url).startswith("step-") and storage.exists(storage.join(url, "manifest.json"))
    }
    if not complete:
        raise InputError(f"{run_dir}: no complete checkpoint yet; train it further")
    if step is not None and step not in complete:
        raise InputError(f"{run_dir}: no checkpoint of step {step}; there are {', '.join(map(str, sorted(complete)))}")
    url = complete[max(complete) if step is None else step]
    state = json.loads(storage.read_text(storage.join(url, "state.json")))
    recipe = load_recipe(recipe_url, TrainRecipe)
    if averaged and recipe.optimizer.average_decay is None:
        raise InputError(f"{run_dir}: has no averaged weights; optimizer.average_decay keeps them")
    return CheckpointFolder(run_dir, url, recipe, state, averaged)


def _step_of(url: str) -> int:
    return int(storage.name_of(url).removeprefix("step-"))
