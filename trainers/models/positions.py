"""Another picture size for a loaded vision tower: its table of positions is resized like a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from schemas.errors import RecipeError
from schemas.naflex import AnyPreprocess, NaflexPreprocess
from schemas.preprocess import Preprocess


def resize_pictures(hf: Any, preprocess: AnyPreprocess, size: int) -> Preprocess:
    """Make the tower of a CLIP or SigLIP model take pictures of `size` px; returns how they are prepared.

    Raises RecipeError.
    """
    if hf.config.model_type not in ("clip", "siglip") or isinstance(preprocess, NaflexPreprocess):
        raise RecipeError(f"model.image_size: not for the towers of a {hf.config.model_type}")
    config, embeddings = hf.config.vision_config, hf.vision_model.embeddings
    if size % config.patch_size:
        raise RecipeError(f"model.image_size {size}: no whole number of patches of {config.patch_size} px")
    table = resize_table(
        embeddings.position_embedding.weight.data, config.image_size // config.patch_size, size // config.patch_size
    )
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
    embeddings.position_ids = torch.arange(len(table)).expand(1, -1)
    embeddings.image_size = config.image_size = size
    embeddings.num_patches = (size // config.patch_size) ** 2
    embeddings.num_positions = len(table)
    return replace(preprocess, size=size)


def resize_table(table_PD: torch.Tensor, old_grid: int, new_grid: int) -> torch.Tensor:
    """Bilinear with antialiasing, as SigLIP 2 does (arXiv 2502.14786); what stands before the patches stays."""
    num_before = len(table_PD) - old_grid**2
    before, patches = table_PD[:num_before], table_PD[num_before:]
    picture = patches.float().reshape(1, old_grid, old_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(picture, (new_grid, new_grid), mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([before, resized.permute(0, 2, 3, 1).reshape(new_grid**2, -1).to(table_PD.dtype)])
