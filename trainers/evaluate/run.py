"""Measure an exported model: zero-shot classification, retrieval or visual question answering."""

from __future__ import annotations

from typing import Any

from schemas.errors import InputError
from trainers.evaluate.load import DualEncoder, LlavaReader
from trainers.evaluate.retrieval import retrieval
from trainers.evaluate.vqa import ImageMode, vqa
from trainers.evaluate.zero_shot import zero_shot

KINDS = ("zero-shot", "retrieval", "vqa")


def evaluate(
    model_folder: str, kind: str, data: str, image_mode: ImageMode = "real", num_patches: int | None = None
) -> dict[str, Any]:
    """Figures of one evaluation, flat and ready for JSON; `image_mode` is for vqa, `num_patches` for NaFlex.

    Raises InputError.
    """
    head: dict[str, Any] = {"model": model_folder, "kind": kind, "data": data}
    if num_patches is not None:
        head["num_patches"] = num_patches
    if kind == "zero-shot":
        return {**head, **zero_shot(DualEncoder(model_folder, num_patches), data)}
    if kind == "retrieval":
        return {**head, **retrieval(DualEncoder(model_folder, num_patches), data)}
    if kind == "vqa":
        return {**head, **vqa(LlavaReader(model_folder), data, image_mode)}
    raise InputError(f"kind of evaluation {kind}: there are {', '.join(KINDS)}")
