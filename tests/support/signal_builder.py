"""Recipes, models and rows for tests of signals; also run in other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from pairloom.schemas.recipes.curate import CurateRecipe


def recipe_for(root: Path, *signals: dict[str, Any], **select: Any) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": list(signals),
            "select": select,
        }
    )


def write_classifier(folder: Path, num_labels: int = 2) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
        id2label={place: f"kind {place}" for place in range(num_labels)},
        label2id={f"kind {place}": place for place in range(num_labels)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
