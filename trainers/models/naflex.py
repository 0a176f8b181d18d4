"""SigLIP 2 with NaFlex (arXiv 2502.14786): transformers' Siglip2Model, new or converted from a SigLIP.

Both classes have the same layers. A SigLIP embeds patches of a square image with a convolution; a Siglip2Model embeds
patches cut in advance with a linear layer, and resizes its square table of position embeddings for every image.
Legend: B images, N maximum number of patches per image, P values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.naflex import NaflexPreprocess
from pairloom.trainers.task import Batch

PROCESSOR_PATCH_SIZE = 16  # px; transformers' Siglip2Processor ignores the folder's patch size
EXPORTED_NUM_PATCHES = 256  # default of Siglip2Processor
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size",
    "hidden_act", "layer_norm_eps", "attention_dropout",
)  # fmt: skip
_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "pad_token_id", "bos_token_id",
    "eos_token_id", "projection_size",
)  # fmt: skip


def naflex_preprocess(num_patches: Sequence[int], patch_size: int) -> NaflexPreprocess:
    """Image preprocessing of an export that was trained with these numbers of patches.

    The default number is 256 if it was trained, else the largest. Raises RecipeError for patch sizes other than 16 px.
    """
    if patch_size != PROCESSOR_PATCH_SIZE:
        raise RecipeError(
            f"model.num_patches: the model has patches of {patch_size} px; Siglip2Processor cuts patches of "
            f"{PROCESSOR_PATCH_SIZE} px only"
        )
    exported = EXPORTED_NUM_PATCHES if EXPORTED_NUM_PATCHES in num_patches else max(num_patches)
    return NaflexPreprocess(exported, patch_size)


def naflex_config(config: SiglipConfig) -> Siglip2Config:
    """Convert a SigLIP config to a Siglip2Config of the same sizes, with the position table of the square image."""
    vision, text = config.vision_config, config.text_config
    return Siglip2Config(
        vision_config={
            **{name: getattr(vision, name) for name in _VISION_FIELDS},
            "num_patches": (vision.image_size // vision.patch_size) ** 2,
            **({"pooling": vision.pooling} if hasattr(vision, "pooling") else {}),
        },
        text_config={name: getattr(text, name) for name in _TEXT_FIELDS},
    )


def to_naflex(siglip: SiglipModel) -> Siglip2Model:
    """Convert a SigLIP to a Siglip2Model with the same outputs on square images of the SigLIP's size."""
    state = siglip.state_dict()
    state[_PATCHES] = state[_PATCHES].permute(0, 2, 3, 1).flatten(1)  # [D, 3, p, p] -> [D, p * p * 3]
    model = Siglip2Model(naflex_config(siglip.config))
    model.load_state_dict(state)
    return model


def naflex_inputs(patches_BNP: torch.Tensor, shapes: torch.Tensor, preprocess: NaflexPreprocess) -> Batch:
    """Model inputs from uint8 patches [B, N, P] and `shapes` [B, 2] (rows and columns of patches), on any device.

    Bit-identical to `NaflexPreprocess.model_inputs`.
    """
    mask_BN = torch.arange(patches_BNP.shape[1], device=shapes.device) < shapes.prod(dim=1, keepdim=True)
    mean, std = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float32, device=patches_BNP.device)
    colours = patches_BNP.view(*patches_BNP.shape[:2], -1, 3).float().mul_(1 / 255).sub_(mean).div_(std)
    values_BNP = colours.flatten(2).mul_(mask_BN[:, :, None])
    return {"pixel_values": values_BNP, "pixel_attention_mask": mask_BN.int(), "spatial_shapes": shapes}


def share_positions(model: Siglip2Model) -> None:
    """Resize the position table once per distinct shape in a batch; transformers resizes it once per image.

    The values are the same. On a GPU, transformers' loop synchronises with the device for every image.
    """
    embeddings = model.vision_model.embeddings
    resize = embeddings.resize_positional_embeddings

    def resize_once(table_HWD: torch.Tensor, spatial_shapes: torch.Tensor, max_length: int) -> torch.Tensor:
        index_of: dict[tuple[int, int], int] = {}
        index = [index_of.setdefault((rows, columns), len(index_of)) for rows, columns in spatial_shapes.tolist()]
        resized: torch.Tensor = resize(table_HWD, torch.tensor(list(index_of)), max_length)
        return resized[torch.tensor(index, device=resized.device)]

    embeddings.resize_positional_embeddings = resize_once
