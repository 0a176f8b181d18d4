"""Measure an exported model by an evaluation of any registered kind."""

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
    """Figures of one evaluation, flat and ready for JSON. Raises InputError, RecipeError.

    `image_mode` is for vqa; `settings` are the further fields of a recipe's `evaluate` entry.
    """
    part: type[EvaluationRecipe] = EVALUATIONS.get(kind)
    if "image_mode" in part.model_fields:
        settings = {"image_mode": image_mode, **settings}
    return run_evaluation(model_folder, parse_recipe({"kind": kind, "data": data, **settings}, part, where="evaluate"))


def run_evaluation(model_folder: str, part: EvaluationRecipe) -> dict[str, Any]:
    """The figures, after the model and the settings that they belong to. Raises InputError."""
    return {"model": model_folder, **part.model_dump(exclude_none=True), **part.run(model_folder)}


def check_data(parts: Sequence[EvaluationRecipe]) -> None:
    """Raise InputError where the data of an evaluation is missing, before hours of training."""
    for part in parts:
        for path in part.paths():
            if not (storage.exists(path) or find_tars(path) or find_parquet(path)):
                raise InputError(f"evaluate: {part.kind}: {path} is not there")
