"""Zero-shot classification by comparing image features with class name features (arXiv 2103.00020, section 3.1).

The metrics follow open_clip and big_vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from pairloom.trainers.evaluate.class_names import DEFAULT_FILES, ClassFiles
from pairloom.trainers.evaluate.labelled import load_classification
from pairloom.trainers.evaluate.load import DualEncoder


def zero_shot(encoder: DualEncoder, data: str, files: ClassFiles = DEFAULT_FILES) -> dict[str, Any]:
    """Top-1, top-5 and mean per-class accuracy, 0..1. Raises InputError when the data cannot be used."""
    task = load_classification(data, files)
    classes_CD = class_features(encoder, task.class_names, task.templates)
    scores_NC = encoder.image_features(task.images) @ classes_CD.T
    sizes = {"num_images": len(task.images), "num_classes": len(task.class_names), "num_templates": len(task.templates)}
    return {**sizes, **accuracies(scores_NC, task.labels)}


def accuracies(scores_NC: torch.Tensor, labels_N: torch.Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy, and the mean of per-class top-1 over the classes that have images, all 0..1.

    Ties count against the model, as in retrieval: equal scores for all classes count as wrong.
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
    """Class features [C, D]: the L2-normalised mean of the normalised features of a class's prompts."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    features = encoder.text_features(texts).view(len(class_names), len(templates), -1)
    return functional.normalize(features.mean(dim=1), dim=-1)
