"""SigLIP 2 with NaFlex (arXiv 2502.14786): transformers' Siglip2Model, new or made from a SigLIP of one image size.

Both classes hold the same network. Where a SigLIP cuts a square image with a convolution, a Siglip2Model multiplies
patches that are cut already; and it resizes its square table of positions for every image.
Legend: B images, N patches that an image may have, P bytes of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.images.naflex import NaflexPreprocess
from pairloom.trainers.task import Batch

PROCESSOR_PATCH_SIZE = 16  # px; transformers' Siglip2Processor cuts no other, whatever a folder says
EXPORTED_NUM_PATCHES = 256  # which Siglip2Processor takes unless it is told another number
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
    """How an export that trained with these numbers prepares images, unless another number is asked for.

    Raises RecipeError.
    """
    if patch_size != PROCESSOR_PATCH_SIZE:
        raise RecipeError(
            f"model.num_patches: the model has patches of {patch_size} px; Siglip2Processor cuts patches of "
            f"{PROCESSOR_PATCH_SIZE} px only"
        )
    exported = EXPORTED_NUM_PATCHES if EXPORTED_NUM_PATCHES in num_patches else max(num_patches)
    return NaflexPreprocess(exported, patch_size)


def naflex_config(config: SiglipConfig) -> Siglip2Config:
    """The same sizes; the table of positions is that of the square image."""
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
    """A Siglip2Model with the weights of a SigLIP: on square images of its size it gives the same outputs."""
    state = siglip.state_dict()
    state[_PATCHES] = state[_PATCHES].permute(0, 2, 3, 1).flatten(1)  # [D, 3, p, p] -> [D, p * p * 3]
    model = Siglip2Model(naflex_config(siglip.config))
    model.load_state_dict(state)
    return model


def naflex_inputs(patches_BNP: torch.Tensor, shapes: torch.Tensor, preprocess: NaflexPreprocess) -> Batch:
    """What `NaflexPreprocess.model_inputs` gives, bit for bit, on any device, from uint8 patches and rows and columns
    [B, 2].
    """
    mask_BN = torch.arange(patches_BNP.shape[1], device=shapes.device) < shapes.prod(dim=1, keepdim=True)
    mean, std = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float32, device=patches_BNP.device)
    colours = patches_BNP.view(*patches_BNP.shape[:2], -1, 3).float().mul_(1 / 255).sub_(mean).div_(std)
    values_BNP = colours.flatten(2).mul_(mask_BN[:, :, None])
    return {"pixel_values": values_BNP, "pixel_attention_mask": mask_BN.int(), "spatial_shapes": shapes}


def share_positions(model: Siglip2Model) -> None:
    """Resize the table of positions once for each shape in a batch, where transformers does it for each image.

    The numbers are the same; on a GPU, transformers waits for the device at every image.
    """
    embeddings = model.vision_model.embeddings
    resize = embeddings.resize_positional_embeddings

    def resize_once(table_HWD: torch.Tensor, spatial_shapes: torch.Tensor, max_length: int) -> torch.Tensor:
        places: dict[tuple[int, int], int] = {}
        index = [places.setdefault((rows, columns), len(places)) for rows, columns in spatial_shapes.tolist()]
        resized: torch.Tensor = resize(table_HWD, torch.tensor(list(places)), max_length)
        return resized[torch.tensor(index, device=resized.device)]

    embeddings.resize_positional_embeddings = resize_once
