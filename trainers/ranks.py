"""Ranks, collective operations on numbers, and the ring on which the contrastive losses pass texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_rank() -> int:
    """Rank on this machine, from the launcher's LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start_exchange(tensors: Sequence[torch.Tensor], by: int) -> Callable[[], list[torch.Tensor]]:
    """Begin to pass tensors along the ring of ranks; call the result to get those of the rank `by` positions ahead.

    The tensors must not change until then, and a rank ends an exchange before it begins another one.
    """
    size = world_size()
    if size == 1:
        return lambda: list(tensors)
    sent = [tensor.contiguous() for tensor in tensors]
    received = [torch.empty_like(tensor) for tensor in sent]
    to, source = (rank() - by) % size, (rank() + by) % size
    operations = [dist.P2POp(dist.isend, tensor, to) for tensor in sent]
    operations += [dist.P2POp(dist.irecv, tensor, source) for tensor in received]
    requests = dist.batch_isend_irecv(operations)

    def finish() -> list[torch.Tensor]:
        for request in requests:
            request.wait()
        sent.clear()  # held until now: the exchange reads it
        return received

    return finish


def gather_numbers(value: float) -> list[float]:
    """The value of every rank, by rank, in float64."""
    if world_size() == 1:
        return [value]
    own = torch.tensor([value], dtype=torch.float64, device=_exchange_device())
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return [float(part) for part in parts]


def sum_over_ranks(*values: float) -> list[float]:
    """Sums of numbers over all ranks, in one exchange."""
    if world_size() == 1:
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=_exchange_device())
    dist.all_reduce(totals)
    return [float(total) for total in totals]


def _exchange_device() -> torch.device:
    """Device of the process group's tensors."""
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return sum_over_ranks(float(flag))[0] > 0


def join_lists(values: list[str]) -> list[str]:
    """The lists of all ranks, one after another."""
    parts: list[list[str]] = [values] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
