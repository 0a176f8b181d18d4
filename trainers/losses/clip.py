"""CLIP's loss (Radford et al., arXiv 2103.00020, section 2.3) over the samples of all ranks.

Shapes: B samples on this rank, N on all ranks, D embedding, R rows of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainers.distributed import gather_with_gradient, rank

BLOCK_ROWS = 1024  # R: a block's logits [R, N] are made again in the backward, so that [B, N] is never held


def clip_loss(image_BD: torch.Tensor, text_BD: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Mean over this rank's rows of both cross entropies, in fp32.

    `image_BD` and `text_BD` are L2-normalised, `logit_scale` is exponentiated. The mean over ranks is the loss of the
    global batch, and so is its gradient.
    """
    image_BD, text_BD = image_BD.float(), text_BD.float()
    image_ND, text_ND = gather_with_gradient(image_BD), gather_with_gradient(text_BD)
    labels_B = torch.arange(len(image_BD), device=image_BD.device) + len(image_BD) * rank()
    image_to_text = _cross_entropies(image_BD, text_ND, logit_scale, labels_B)
    text_to_image = _cross_entropies(text_BD, image_ND, logit_scale, labels_B)
    return (image_to_text + text_to_image) / (2 * len(image_BD))


def _cross_entropies(
    rows_BD: torch.Tensor, columns_ND: torch.Tensor, scale: torch.Tensor, labels_B: torch.Tensor
) -> torch.Tensor:
    """Sum over the rows, block by block."""
    total = rows_BD.new_zeros(())
    for rows_RD, labels_R in zip(torch.split(rows_BD, BLOCK_ROWS), torch.split(labels_B, BLOCK_ROWS), strict=True):
        total = total + checkpoint(_block, rows_RD, columns_ND, scale, labels_R, use_reentrant=False)
    return total


def _block(
    rows_RD: torch.Tensor, columns_ND: torch.Tensor, scale: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    return F.cross_entropy(scale * rows_RD @ columns_ND.T, labels_R, reduction="sum")
