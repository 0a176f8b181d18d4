"""Limits of the decoder process, which decodes hostile bytes. Linux only; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress

PR_SET_NO_NEW_PRIVS = 38
SPARE_BYTES = 16 << 30  # address space beyond that of the loaded libraries
BYTES_PER_PIXEL = 64  # address space per pixel of the largest image


def drop_privileges() -> None:
    """Write no core files, and gain no privileges through set-uid programs."""
    if sys.platform != "linux":
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit_memory(max_pixels: int) -> None:
    """Limit the address space to a size that no image within `max_pixels` needs."""
    if sys.platform != "linux":
        return
    with suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + SPARE_BYTES + BYTES_PER_PIXEL * max_pixels
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
