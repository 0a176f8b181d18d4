"""SigLIP's loss (Zhai et al., arXiv 2303.15343, algorithm 1 and section 3.3), with the texts on a ring.

The backward goes the ring in reverse: a text's gradient is at home when it has met all images.

Shapes: B samples on this rank, D embedding, R rows and C columns of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from pairloom.trainers.losses.blocks import DEFAULT_BLOCKS, BlockSettings, in_fp32
from pairloom.trainers.ranks import start_exchange, world_size


def siglip_loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    settings: BlockSettings = DEFAULT_BLOCKS,
) -> torch.Tensor:
    """Sum over all texts, mean over this rank's images, of -log sigmoid(+-logit), in fp32.

    `image_BD` and `text_BD` are L2-normalised, of any floating type and of equal size on all ranks; `logit_scale` is
    exponentiated. The mean over ranks is the loss of the global batch, and so is its gradient. Every rank calls it,
    and its backward.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        loss: torch.Tensor = _SiglipLoss.apply(  # type: ignore[no-untyped-call]
            image_BD.float(), text_BD.float(), logit_scale.float(), logit_bias.float(), settings
        )
        return loss


class _SiglipLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        settings: BlockSettings,
    ) -> torch.Tensor:
        ctx.settings, kernels = settings, settings.kernels_for(image_BD)
        total = torch.zeros((), dtype=torch.float64, device=image_BD.device)
        held_BD = text_BD.contiguous()
        for turn in range(world_size()):
            arriving = start_exchange([held_BD], by=1) if turn + 1 < world_size() else None
            for R, C in settings.blocks(len(image_BD), len(held_BD)):
                logits_RC = _logits(image_BD[R], held_BD[C], scale, bias)
                if turn == 0 and R == C:
                    logits_RC.diagonal().neg_()  # -log sigmoid(x) = softplus(-x) for the pairs, softplus(x) elsewhere
                total += kernels.siglip_sum_(logits_RC)
                del logits_RC  # before the next one is made
            if arriving is not None:
                (held_BD,) = arriving()
        ctx.save_for_backward(image_BD, held_BD, scale, bias)
        return (total / len(image_BD)).float()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @in_fp32
    def backward(  # type: ignore[override]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        image_BD, held_BD, scale, bias = ctx.saved_tensors
        settings: BlockSettings = ctx.settings
        weight = float(gradients[0]) / len(image_BD)
        image_gradient, text_gradient = torch.zeros_like(image_BD), torch.zeros_like(held_BD)
        bias_gradient = torch.zeros((), dtype=torch.float64, device=image_BD.device)
        for turn in reversed(range(world_size())):
            arriving = start_exchange([held_BD], by=-1) if turn > 0 else None
            for R, C in settings.blocks(len(image_BD), len(held_BD)):
                logits_RC = _logits(image_BD[R], held_BD[C], scale, bias)
                gradient_RC = _gradient_(logits_RC, weight, settings, has_pairs=turn == 0 and R == C)
                bias_gradient += gradient_RC.sum(dtype=torch.float64)
                image_gradient[R].addmm_(gradient_RC, held_BD[C])
                text_gradient[C].addmm_(gradient_RC.T, image_BD[R])
                del logits_RC, gradient_RC  # before the next ones are made
            if arriving is not None:
                (held_BD,) = arriving()
                (text_gradient,) = start_exchange([text_gradient], by=-1)()
        scale_gradient = (image_gradient * image_BD).sum().reshape(scale.shape)
        of_bias = bias_gradient.float().reshape(bias.shape)
        return image_gradient.mul_(scale), text_gradient.mul_(scale), scale_gradient, of_bias, None


def _logits(image_RD: torch.Tensor, text_CD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.addmm(bias.reshape(1, 1), image_RD * scale, text_CD.T)


def _gradient_(logits_RC: torch.Tensor, weight: float, settings: BlockSettings, has_pairs: bool) -> torch.Tensor:
    """Gradient of the loss by the logits, written into them."""
    of_pairs = torch.sigmoid(-logits_RC.diagonal()).mul_(-weight) if has_pairs else None
    gradient_RC = settings.kernels_for(logits_RC).siglip_gradient_(logits_RC, weight)
    if of_pairs is not None:
        gradient_RC.diagonal().copy_(of_pairs)
    return gradient_RC
