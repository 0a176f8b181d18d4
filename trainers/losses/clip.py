"""CLIP's loss (Radford et al., arXiv 2103.00020, section 2.3) over the samples of all ranks.

Shapes: B samples on this rank, N on all ranks, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainers.distributed import gather_with_gradient, rank


def clip_loss(image_BD: torch.Tensor, text_BD: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Mean over this rank's rows of both cross entropies, in fp32.

    `image_BD` and `text_BD` are L2-normalised, `logit_scale` is exponentiated. The mean over ranks is the loss of the
    global batch, and so is its gradient.
    """
    image_BD, text_BD = image_BD.float(), text_BD.float()
    image_ND, text_ND = gather_with_gradient(image_BD), gather_with_gradient(text_BD)
    labels_B = torch.arange(len(image_BD), device=image_BD.device) + len(image_BD) * rank()
    image_to_text = F.cross_entropy(logit_scale * image_BD @ text_ND.T, labels_B)
    text_to_image = F.cross_entropy(logit_scale * text_BD @ image_ND.T, labels_B)
    return (image_to_text + text_to_image) / 2
