"""Measure an exported model: zero-shot classification, linear probe, retrieval or visual question answering."""

from __future__ import annotations

from typing import Any

from schemas.errors import InputError
from trainers.evaluate.class_names import BESIDE_THE_DATA, ClassFiles
from trainers.evaluate.linear_probe import linear_probe
from trainers.evaluate.load import DualEncoder, LlavaReader
from trainers.evaluate.retrieval import retrieval
from trainers.evaluate.vqa import ImageMode, vqa
from trainers.evaluate.zero_shot import zero_shot

KINDS = ("zero-shot", "linear-probe", "retrieval", "vqa")


def evaluate(
    model_folder: str,
    kind: str,
    data: str,
    image_mode: ImageMode = "real",
    train_data: str | None = None,
    files: ClassFiles = BESIDE_THE_DATA,
) -> dict[str, Any]:
    """Figures of one evaluation, flat and ready for JSON. Raises InputError.

    `image_mode` is for vqa, `train_data` for linear-probe, `files` for both kinds of classification.
    """
    if (train_data is not None) != (kind == "linear-probe"):
        raise InputError("linear-probe, and only it, needs train data: images to fit the classifier to")
    if files != BESIDE_THE_DATA and kind not in ("zero-shot", "linear-probe"):
        raise InputError(f"{kind} has no classes and templates")
    head = {"model": model_folder, "kind": kind, "data": data}
    if kind == "zero-shot":
        return {**head, **zero_shot(DualEncoder(model_folder), data, files)}
    if kind == "linear-probe" and train_data is not None:
        return {**head, **linear_probe(DualEncoder(model_folder), data, train_data, files)}
    if kind == "retrieval":
        return {**head, **retrieval(DualEncoder(model_folder), data)}
    if kind == "vqa":
        return {**head, **vqa(LlavaReader(model_folder), data, image_mode)}
    raise InputError(f"kind of evaluation {kind}: there are {', '.join(KINDS)}")
