"""Runs a function as real gloo ranks, one process each, and gives back what every rank returns."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """`work(*arguments)` on every rank; results by rank. Raises what a rank raised, as ProcessRaisedException."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = mp.get_context("spawn").Queue()
    processes = mp.spawn(  # type: ignore[attr-defined]
        _rank, (world_size, port, work, arguments, queue), nprocs=world_size, join=False
    )
    results: dict[int, Any] = {}
    while not processes.join(timeout=0.1):
        while not queue.empty():
            rank, result = queue.get()
            results[rank] = result
    while len(results) < world_size:
        rank, result = queue.get(timeout=10)
        results[rank] = result
    return [results[rank] for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, work: Callable[..., Any], arguments: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    queue.put((rank, work(*arguments)))
    dist.barrier()
    dist.destroy_process_group()
