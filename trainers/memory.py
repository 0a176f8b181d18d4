"""Memory of a rank that trains on a CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let the C library hand out again what tensors have given back, for the life of this process.

    As it comes, glibc maps each large tensor anew, and the system clears every page of it: with a ViT-B/32 a tenth of
    a step. Nothing happens beside a GPU, where the tensors lie elsewhere, or with another C library.
    """
    if torch.cuda.is_available() or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
