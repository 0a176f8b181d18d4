"""Blocks of a loss: logits [R, C] that are computed, used and dropped, in the forward and again in the backward.

A loss holds features, vectors and one block, never [B, N]: its memory is O(B D) (Inf-CL, arXiv 2410.17243). The
arithmetic on a block is that of `torch_kernels`, or of `triton_kernels` on a GPU, one pass over the block each.

Shapes: R rows (images) and C columns (texts) of a block, D embedding.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pairloom.trainers.losses import torch_kernels
from pairloom.trainers.losses.torch_kernels import SplitSums

BLOCK_BYTES = 64 << 20  # of a block with the copies that its arithmetic makes
NUM_COPIES = 4  # logits, two exponentials, and a product


class Kernels(Protocol):
    """Arithmetic on one block of fp32 logits. Names ending in an underscore write into the logits."""

    def clip_sums_(self, logits_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log sum exp of each row [R] and of each column [C], in float64."""
        ...

    def clip_gradient_(self, logits_RC: torch.Tensor, rows: SplitSums, columns: SplitSums) -> torch.Tensor:
        """The softmaxes of rows and of columns, each times its weight."""
        ...

    def siglip_sum_(self, logits_RC: torch.Tensor) -> torch.Tensor:
        """Sum of softplus over the block, 0-D."""
        ...

    def siglip_gradient_(self, logits_RC: torch.Tensor, weight: float) -> torch.Tensor:
        """Sigmoid times a weight."""
        ...


@dataclass(frozen=True)
class BlockSettings:
    """Size of the blocks, and the kernels that compute them."""

    max_bytes: int = BLOCK_BYTES
    """Of a block with its copies."""
    kernels: Kernels | None = None
    """None: by device."""

    def side(self) -> int:
        """Rows, and columns, of a block."""
        return max(1, math.isqrt(self.max_bytes // (4 * NUM_COPIES)))

    def blocks(self, num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every block, row by row; blocks on the diagonal begin at equal numbers."""
        side = self.side()
        for row in range(0, num_rows, side):
            for column in range(0, num_columns, side):
                yield slice(row, min(row + side, num_rows)), slice(column, min(column + side, num_columns))

    def kernels_for(self, tensor: torch.Tensor) -> Kernels:
        """The kernels for the device of a tensor."""
        return kernels_for(tensor) if self.kernels is None else self.kernels


DEFAULT_BLOCKS = BlockSettings()


def kernels_for(tensor: torch.Tensor) -> Kernels:
    """Triton's kernels on a GPU that has Triton, torch's elsewhere."""
    if tensor.is_cuda and importlib.util.find_spec("triton") is not None:
        from pairloom.trainers.losses import triton_kernels

        return triton_kernels
    return torch_kernels


def in_fp32(backward: Callable[..., Any]) -> Any:
    """A backward that computes in fp32 even under autocast."""

    @functools.wraps(backward)
    def without_autocast(ctx: Any, *gradients: torch.Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return without_autocast
