"""CLIP's loss (Radford et al., arXiv 2103.00020, section 2.3) over the samples of all ranks.

Texts travel on a ring, so no rank holds more than a few times its own share. Each takes along what its column has
summed up; after the last turn a column is complete, and the backward goes the same way in reverse: the gradient of a
text is at home when it has met all images.

Shapes: B samples on this rank, W ranks, D embedding, R rows and C columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from pairloom.trainers.losses.blocks import DEFAULT_BLOCKS, BlockSettings, in_fp32
from pairloom.trainers.losses.torch_kernels import SplitSums
from pairloom.trainers.ranks import gather_numbers, rank, start_exchange, world_size


def clip_loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    settings: BlockSettings = DEFAULT_BLOCKS,
) -> torch.Tensor:
    """Mean over this rank's samples of both cross entropies, in fp32.

    `image_BD` and `text_BD` are L2-normalised, of any floating type and of equal size on all ranks; `logit_scale` is
    exponentiated. The mean over ranks is the loss of the global batch, and so is its gradient. Every rank calls it,
    and its backward.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        loss: torch.Tensor = _ClipLoss.apply(  # type: ignore[no-untyped-call]
            image_BD.float(), text_BD.float(), logit_scale.float(), settings
        )
        return loss


class _ClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_BD: torch.Tensor, text_BD: torch.Tensor, scale: torch.Tensor, settings: BlockSettings
    ) -> torch.Tensor:
        ctx.settings = settings
        pairs_B = (image_BD * text_BD).sum(dim=1) * scale
        # log sum exp of each row and column in float64: only vectors, and the loss is a small difference of them.
        rows_B = torch.full_like(pairs_B, -torch.inf, dtype=torch.float64)
        columns_B, held_BD = rows_B, text_BD.contiguous()
        for turn in range(world_size()):
            arriving = start_exchange([held_BD], by=1) if turn + 1 < world_size() else None
            own_pairs = pairs_B if turn == 0 else None
            rows_B, columns_B = _add_logits((image_BD, held_BD, scale), (rows_B, columns_B), own_pairs, settings)
            if arriving is not None:
                (held_BD,) = arriving()
                (columns_B,) = start_exchange([columns_B], by=1)()
        ctx.save_for_backward(image_BD, held_BD, scale, pairs_B, rows_B, columns_B)
        (own_columns_B,) = start_exchange([columns_B], by=1)()
        return ((rows_B + own_columns_B - 2 * pairs_B.double()).sum() / (2 * len(image_BD))).float()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @in_fp32
    def backward(  # type: ignore[override]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        settings: BlockSettings = ctx.settings
        image_BD, held_BD, scale, pairs_B, rows_B, columns_B = ctx.saved_tensors
        weights = gather_numbers(float(gradients[0]) / (2 * len(image_BD)))  # of each rank's samples in all gradients
        image_gradient, text_gradient = torch.zeros_like(image_BD), torch.zeros_like(held_BD)
        for turn in reversed(range(world_size())):
            arriving = start_exchange([held_BD, columns_B], by=-1) if turn > 0 else None
            rows = _Side(rows_B, weights[rank()])
            columns = _Side(columns_B, weights[(rank() + turn) % world_size()])
            for R, C in settings.blocks(len(image_BD), len(held_BD)):
                logits_RC = _logits(image_BD[R], held_BD[C], scale)
                pairs = pairs_B[R] if turn == 0 and R == C else None
                gradient_RC = _gradient_(logits_RC, rows.part(R), columns.part(C), pairs, settings)
                image_gradient[R].addmm_(gradient_RC, held_BD[C])
                text_gradient[C].addmm_(gradient_RC.T, image_BD[R])
                del logits_RC, gradient_RC  # before the next ones are made
            if arriving is not None:
                held_BD, columns_B = arriving()
                (text_gradient,) = start_exchange([text_gradient], by=-1)()
        scale_gradient = (image_gradient * image_BD).sum().reshape(scale.shape)
        return image_gradient.mul_(scale), text_gradient.mul_(scale), scale_gradient, None


def _add_logits(
    features: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    sums: tuple[torch.Tensor, torch.Tensor],
    pairs_B: torch.Tensor | None,
    settings: BlockSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the logits of `features` (images, texts, scale) to the log sums of rows and columns.

    `pairs_B` are given where the texts belong to the images.
    """
    image_BD, text_BD, scale = features
    kernels = settings.kernels_for(image_BD)
    rows_B, columns_B = sums[0].clone(), sums[1].clone()
    for R, C in settings.blocks(len(image_BD), len(text_BD)):
        logits_RC = _logits(image_BD[R], text_BD[C], scale)
        if pairs_B is not None and R == C:
            logits_RC.diagonal().copy_(pairs_B[R])  # a pair minus itself is zero, however a product rounds
        of_rows, of_columns = kernels.clip_sums_(logits_RC)
        rows_B[R] = torch.logaddexp(rows_B[R], of_rows)
        columns_B[C] = torch.logaddexp(columns_B[C], of_columns)
        del logits_RC  # before the next one is made
    return rows_B, columns_B


def _logits(image_RD: torch.Tensor, text_CD: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """One function for both directions: the backward needs the forward's very bits."""
    return (image_RD * scale) @ text_CD.T


@dataclass(frozen=True)
class _Side:
    """Log sums of rows, or of columns, and the weight of each one's cross entropy."""

    sums: torch.Tensor  # float64
    weight: float

    def part(self, where: slice) -> _Side:
        """Those of a block."""
        return _Side(self.sums[where], self.weight)

    def split(self) -> SplitSums:
        """For a kernel: the sums as fp32 and what that rounds away."""
        rounded = self.sums.float()
        return rounded, (self.sums - rounded).float(), self.weight

    def of_pairs(self, pairs: torch.Tensor) -> torch.Tensor:
        """Gradient by the pairs' own logits: softmax minus one, exact where it is nearly zero."""
        return torch.expm1(pairs - self.sums).mul_(self.weight)


def _gradient_(
    logits_RC: torch.Tensor, rows: _Side, columns: _Side, pairs: torch.Tensor | None, settings: BlockSettings
) -> torch.Tensor:
    """Gradient of the loss by the logits, written into them; `pairs` [R] are given on the diagonal."""
    gradient_RC = settings.kernels_for(logits_RC).clip_gradient_(logits_RC, rows.split(), columns.split())
    if pairs is not None:
        gradient_RC.diagonal().copy_(rows.of_pairs(pairs) + columns.of_pairs(pairs))
    return gradient_RC
