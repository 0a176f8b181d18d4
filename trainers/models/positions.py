"""Change the image size of a loaded vision tower by interpolating its position embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.naflex import AnyPreprocess, NaflexPreprocess
from pairloom.schemas.images.preprocess import Preprocess

_TABLES = ("position_embedding.weight", "position_embeddings")


def resize_images(hf: Any, preprocess: AnyPreprocess, size: int) -> Preprocess:
    """Rebuild a model's vision tower for images of `size` px; returns the changed preprocessing.

    Towers without learned absolute positions (DINOv3's rotary embeddings, Swin, ConvNeXt) keep all weights. Raises
    RecipeError for NaFlex models, for sizes that are not a multiple of the patch size, and for towers with other
    weights that depend on the image size (BEiT's relative positions).
    """
    if isinstance(preprocess, NaflexPreprocess):
        raise RecipeError("model.image_size: NaFlex takes images of any size; model.num_patches says how large")
    config, old = hf.config.vision_config, hf.vision_model
    patch_size, old_size = getattr(config, "patch_size", 1), config.image_size
    if size % patch_size:
        raise RecipeError(f"model.image_size {size}: no whole number of patches of {patch_size} px")
    config.image_size = old.config.image_size = size
    new = type(old)(old.config)
    shapes = {name: tensor.shape for name, tensor in new.state_dict().items()}
    state = old.state_dict()
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            if not name.endswith(_TABLES):
                raise RecipeError(f"model.image_size: not for a {config.model_type}: {name} belongs to {old_size} px")
            table = resize_table(tensor.reshape(-1, tensor.shape[-1]), old_size // patch_size, size // patch_size)
            state[name] = table.reshape(shapes[name])
    new.load_state_dict(state)
    hf.vision_model = new
    return replace(preprocess, size=size)


def resize_table(table_PD: torch.Tensor, old_grid: int, new_grid: int) -> torch.Tensor:
    """Resize a position table [P, D] from old_grid² to new_grid² patches; rows before the patches are kept.

    Bilinear with antialiasing, as in SigLIP 2 (arXiv 2502.14786).
    """
    num_before = len(table_PD) - old_grid**2
    before, patches = table_PD[:num_before], table_PD[num_before:]
    image = patches.float().reshape(1, old_grid, old_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, (new_grid, new_grid), mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([before, resized.permute(0, 2, 3, 1).reshape(new_grid**2, -1).to(table_PD.dtype)])
