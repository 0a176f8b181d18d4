"""Ranks, and the two exchanges of the contrastive losses: gather with gradient, and the ring.

Shapes: B samples on this rank, N = W * B on all W ranks, D embedding.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_rank() -> int:
    """Rank on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gather_with_gradient(features_BD: torch.Tensor) -> torch.Tensor:
    """Features of all ranks [N, D]; the backward sums the gradients of all ranks and keeps the own rows."""
    if world_size() == 1:
        return features_BD
    gathered: torch.Tensor = _Gather.apply(features_BD)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_BD: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(features_BD) for _ in range(world_size())]
        dist.all_gather(parts, features_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gradient_ND = gradients[0].clone(memory_format=torch.contiguous_format)  # summed in place
        dist.all_reduce(gradient_ND)  # gloo has no reduce-scatter
        size = gradient_ND.shape[0] // world_size()
        return gradient_ND[rank() * size : (rank() + 1) * size]


def shift(features_BD: torch.Tensor) -> torch.Tensor:
    """The features of the next rank on the ring; the backward sends gradients the other way round."""
    shifted: torch.Tensor = _Shift.apply(features_BD)  # type: ignore[no-untyped-call]
    return shifted


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_BD: torch.Tensor) -> torch.Tensor:
        return _exchange(features_BD, to=rank() - 1, source=rank() + 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _exchange(gradients[0], to=rank() + 1, source=rank() - 1)


def _exchange(tensor: torch.Tensor, to: int, source: int) -> torch.Tensor:
    size = world_size()
    received = torch.empty_like(tensor)
    requests = [
        dist.P2POp(dist.isend, tensor.contiguous(), to % size),
        dist.P2POp(dist.irecv, received, source % size),
    ]
    for request in dist.batch_isend_irecv(requests):
        request.wait()
    return received


def sum_over_ranks(*values: float) -> list[float]:
    """Sums of numbers over all ranks, in one exchange."""
    if world_size() == 1:
        return list(values)
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return sum_over_ranks(float(flag))[0] > 0


def join_lists(values: list[str]) -> list[str]:
    """The lists of all ranks, one after another."""
    parts: list[list[str]] = [values] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
