"""SigLIP's loss (Zhai et al., arXiv 2303.15343, algorithm 1 and section 3.3), with the text features on a ring.

Shapes: B samples on this rank, D embedding, R rows of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainers.distributed import shift, world_size

BLOCK_ROWS = 1024  # R


def siglip_loss(
    image_BD: torch.Tensor, text_BD: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    """Sum over all texts, mean over this rank's images, of -log sigmoid(+-logit), in fp32.

    `logit_scale` is exponentiated. Each rank sees every other rank's texts once, B at a time; a block's logits [R, B]
    are made again in the backward, so memory stays that of one block.
    """
    image_BD, text_BD = image_BD.float(), text_BD.float()
    pairs = logit_scale * (image_BD * text_BD).sum(dim=1) + logit_bias
    total = -pairs.sum()  # -log sigmoid(x) = softplus(x) - x for the matching pairs, softplus(x) for all others
    for turn in range(world_size()):
        for image_RD in torch.split(image_BD, BLOCK_ROWS):
            total = total + checkpoint(_block, image_RD, text_BD, logit_scale, logit_bias, use_reentrant=False)
        if turn + 1 < world_size():
            text_BD = shift(text_BD)
    return total / len(image_BD)


def _block(image_RD: torch.Tensor, text_BD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.softplus(scale * image_RD @ text_BD.T + bias).sum()
