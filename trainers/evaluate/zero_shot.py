"""Zero-shot classification: images against the names of their classes, by open_clip's and big_vision's rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from pairloom.trainers.evaluate.class_names import BESIDE_THE_DATA, ClassFiles
from pairloom.trainers.evaluate.labelled import load_classification
from pairloom.trainers.evaluate.load import DualEncoder


def zero_shot(encoder: DualEncoder, data: str, files: ClassFiles = BESIDE_THE_DATA) -> dict[str, Any]:
    """Top-1, top-5 and mean accuracy per class, 0..1."""
    task = load_classification(data, files)
    classes_CD = class_features(encoder, task.class_names, task.templates)
    scores_NC = encoder.image_features(task.images) @ classes_CD.T
    sizes = {"num_images": len(task.images), "num_classes": len(task.class_names), "num_templates": len(task.templates)}
    return {**sizes, **accuracies(scores_NC, task.labels)}


def accuracies(scores_NC: torch.Tensor, labels_N: torch.Tensor) -> dict[str, float]:
    """Top-1, top-5 and the mean of top-1 over the classes that have images.

    A tie counts against the model, as in retrieval: equal scores for all classes are no answer.
    """
    ranks = (scores_NC >= scores_NC.gather(1, labels_N[:, None])).sum(dim=1) - 1
    is_top1 = (ranks < 1).double()
    per_class = [is_top1[labels_N == label].mean() for label in torch.unique(labels_N)]
    return {
        "top1": float(is_top1.mean()),
        "top5": float((ranks < 5).double().mean()),
        "mean_per_class": float(torch.stack(per_class).mean()),
    }


def class_features(encoder: DualEncoder, class_names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Features [C, D]: the mean of a class's normalised prompts, normalised again."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    features = encoder.text_features(texts).view(len(class_names), len(templates), -1)
    return functional.normalize(features.mean(dim=1), dim=-1)
