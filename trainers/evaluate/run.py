"""Run registered evaluations on an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pairloom.registry import EVALUATIONS
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.evaluation import EvaluationRecipe
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.storage import storage
from pairloom.trainers.data.tar_index import find_tars
from pairloom.trainers.evaluate.recipes import ImageMode
from pairloom.trainers.evaluate.samples import find_parquet


def evaluate(
    model_folder: str, kind: str, data: str, image_mode: ImageMode = "real", **settings: Any
) -> dict[str, Any]:
    """Run one evaluation; returns a flat dict of metrics that JSON can hold.

    `image_mode` is for vqa; `settings` are further fields of a recipe's `evaluate` entry. Raises RecipeError for
    invalid settings, InputError for a model or data that cannot be used.
    """
    part: type[EvaluationRecipe] = EVALUATIONS.get(kind)
    if "image_mode" in part.model_fields:
        settings = {"image_mode": image_mode, **settings}
    return run_evaluation(model_folder, parse_recipe({"kind": kind, "data": data, **settings}, part, where="evaluate"))


def run_evaluation(model_folder: str, part: EvaluationRecipe) -> dict[str, Any]:
    """Run one evaluation; returns the model folder, the settings and the metrics. Raises InputError."""
    return {"model": model_folder, **part.model_dump(exclude_none=True), **part.run(model_folder)}


def check_data(parts: Sequence[EvaluationRecipe]) -> None:
    """Raise InputError when the data of an evaluation is missing; called before training starts."""
    for part in parts:
        for path in part.paths():
            if not (storage.exists(path) or find_tars(path) or find_parquet(path)):
                raise InputError(f"evaluate: {part.kind}: {path} is not there")
