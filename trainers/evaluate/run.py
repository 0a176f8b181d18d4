"""Measure an exported model: zero-shot classification, linear probe, retrieval or visual question answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import EvaluateRecipe
from pairloom.schemas.storage import storage
from pairloom.trainers.data.tar_index import find_tars
from pairloom.trainers.evaluate.class_names import ClassFiles
from pairloom.trainers.evaluate.linear_probe import linear_probe
from pairloom.trainers.evaluate.load import DualEncoder, LlavaReader
from pairloom.trainers.evaluate.retrieval import retrieval
from pairloom.trainers.evaluate.samples import find_parquet
from pairloom.trainers.evaluate.vqa import ImageMode, vqa
from pairloom.trainers.evaluate.zero_shot import zero_shot


def evaluate(
    model_folder: str, kind: str, data: str, image_mode: ImageMode = "real", **settings: Any
) -> dict[str, Any]:
    """Figures of one evaluation, flat and ready for JSON. Raises InputError, RecipeError.

    `image_mode` is for vqa; `settings` are the further fields of a recipe's `evaluate` entry.
    """
    part = parse_recipe({"kind": kind, "data": data, **settings}, EvaluateRecipe, where="evaluate")
    head = {"model": model_folder, **part.model_dump(exclude_none=True)}
    if part.kind == "vqa":
        return {**head, **vqa(LlavaReader(model_folder), data, image_mode)}
    encoder = DualEncoder(model_folder, part.num_patches)
    if part.kind == "retrieval":
        return {**head, **retrieval(encoder, data)}
    files = ClassFiles(part.classes, part.templates)
    if part.train_data is None:
        return {**head, **zero_shot(encoder, data, files)}
    return {**head, **linear_probe(encoder, data, part.train_data, files)}


def check_data(parts: Sequence[EvaluateRecipe]) -> None:
    """Raise InputError where an evaluation could not begin: better before the training than after it."""
    for part in parts:
        for path in (part.data, part.train_data, part.classes, part.templates):
            if path is not None and not (storage.exists(path) or find_tars(path) or find_parquet(path)):
                raise InputError(f"evaluate: {part.kind}: {path} is not there")
