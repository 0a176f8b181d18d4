"""Arithmetic on one block of logits in plain torch: the reference, and what a CPU runs. See `blocks.Kernels`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SplitSums = tuple[torch.Tensor, torch.Tensor, float]
"""Log sums of rows or columns as fp32, what that rounds away, and the weight of each one's cross entropy."""


def clip_sums_(logits_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log sum exp of each row [R] and of each column [C], in float64."""
    largest_R, largest_C = logits_RC.amax(dim=1), logits_RC.amax(dim=0)
    of_rows = (logits_RC - largest_R[:, None]).exp_().sum(dim=1)
    of_columns = logits_RC.sub_(largest_C).exp_().sum(dim=0)
    return largest_R + of_rows.double().log(), largest_C + of_columns.double().log()


def clip_gradient_(logits_RC: torch.Tensor, rows: SplitSums, columns: SplitSums) -> torch.Tensor:
    """The softmaxes of rows and of columns, each times its weight."""
    (sums_R, rests_R, row_weight), (sums_C, rests_C, column_weight) = rows, columns
    of_rows = (logits_RC - sums_R[:, None]).sub_(rests_R[:, None]).exp_().mul_(row_weight)
    return logits_RC.sub_(sums_C).sub_(rests_C).exp_().mul_(column_weight).add_(of_rows)


def siglip_sum_(logits_RC: torch.Tensor) -> torch.Tensor:
    """Sum of softplus over the block, 0-D."""
    return F.softplus(logits_RC).sum(dtype=torch.float64)


def siglip_gradient_(logits_RC: torch.Tensor, weight: float) -> torch.Tensor:
    """Sigmoid times a weight."""
    return logits_RC.sigmoid_().mul_(weight)
