"""Zero-shot classification: images against the names of their classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from schemas import storage
from schemas.errors import InputError
from trainers.evaluate.load import DualEncoder, ImageSource
from trainers.evaluate.records import read_jsonl

DEFAULT_TEMPLATES = ("a photo of a {}.",)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")


@dataclass(frozen=True)
class Classification:
    """Images with their class, and what the classes are called."""

    images: Sequence[ImageSource]
    labels: torch.Tensor  # [N], index of the class
    class_names: Sequence[str]
    templates: Sequence[str]


def zero_shot(encoder: DualEncoder, data: str) -> dict[str, Any]:
    """Top-1, top-5 and mean accuracy per class, 0..1."""
    task = load_classification(data)
    classes_CD = class_features(encoder, task.class_names, task.templates)
    scores_NC = encoder.image_features(task.images) @ classes_CD.T
    ranked = scores_NC.topk(min(5, len(task.class_names)), dim=1).indices
    is_top1 = (ranked[:, 0] == task.labels).double()
    present = torch.unique(task.labels)
    per_class = torch.stack([is_top1[task.labels == label].mean() for label in present])
    return {
        "num_images": len(task.images),
        "num_classes": len(task.class_names),
        "top1": float(is_top1.mean()),
        "top5": float((ranked == task.labels[:, None]).any(dim=1).double().mean()),
        "mean_per_class": float(per_class.mean()),
    }


def class_features(encoder: DualEncoder, class_names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Features [C, D]: the mean of a class's normalised prompts, normalised again."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    features = encoder.text_features(texts).view(len(class_names), len(templates), -1)
    return functional.normalize(features.mean(dim=1), dim=-1)


def load_classification(data: str) -> Classification:
    """A folder of class folders with classes.json, or a jsonl of {image, class}. Raises InputError.

    classes.json is {folder: name}, or {"classes": {folder: name}, "templates": ["a photo of a {}."]}; beside a jsonl
    it is optional and gives names to its classes.
    """
    is_table = data.endswith(".jsonl")
    base = data.rstrip("/").rpartition("/")[0] or "." if is_table else data
    names, templates = _load_classes(storage.join(base, "classes.json"), is_required=not is_table)
    pairs: list[tuple[ImageSource, str]] = []
    if is_table:
        for record in read_jsonl(data, ("image", "class")):
            pairs.append((ImageSource(storage.join(base, record["image"])), str(record["class"])))
        names = names or {key: key for key in sorted({key for _, key in pairs})}
    else:
        for key in names:
            files = [
                url for url in storage.list_files(storage.join(base, key)) if url.lower().endswith(_IMAGE_SUFFIXES)
            ]
            pairs += [(ImageSource(url), key) for url in files]
    if not pairs:
        raise InputError(f"{data}: no images in the folders that classes.json names")
    unknown = {key for _, key in pairs} - set(names)
    if unknown:
        raise InputError(f"{data}: class {sorted(unknown)[0]!r} is not in classes.json")
    index = {key: position for position, key in enumerate(names)}
    labels = torch.tensor([index[key] for _, key in pairs])
    return Classification([image for image, _ in pairs], labels, list(names.values()), templates)


def _load_classes(url: str, is_required: bool) -> tuple[dict[str, str], Sequence[str]]:
    if not storage.exists(url):
        if is_required:
            raise InputError(f"{url}: missing; write {{folder: class name}} for zero-shot evaluation")
        return {}, DEFAULT_TEMPLATES
    try:
        content = json.loads(storage.read_text(url))
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}") from error
    nested = isinstance(content, Mapping) and isinstance(content.get("classes"), Mapping)
    classes = content["classes"] if nested else content
    templates = content.get("templates", DEFAULT_TEMPLATES) if nested else DEFAULT_TEMPLATES
    if not isinstance(classes, Mapping) or not all(isinstance(name, str) for name in classes.values()):
        raise InputError(f"{url}: must be {{folder: class name}} or {{classes: ..., templates: [...]}}")
    if not templates or not all("{}" in template for template in templates):
        raise InputError(f"{url}: every template needs {{}} where the class name goes")
    return dict(classes), tuple(templates)
