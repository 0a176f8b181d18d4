"""The child process that decodes images: if a decoder crashes, this process dies and its worker does not.

It exchanges messages with `decoder_process` over a socket. Bodies arrive in shared memory, stored images go to the
spool file of the shard; the socket carries only their metadata. Each worker starts one such process, so this module
imports only what decoding needs: no pyarrow, pydantic, fsspec or ray.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pairloom.pipelines.images.boxes import Boxes
from pairloom.pipelines.images.decoder_limits import drop_privileges, limit_memory
from pairloom.pipelines.images.decoder_messages import DecodeResult, pack_result
from pairloom.pipelines.images.stored_image import StoredImage
from pairloom.schemas.errors import SampleError

MAX_MESSAGE_BYTES = 1 << 17
BEGIN = b"begin"  # announces a Begin, which carries a descriptor; other messages are read without one
READY = b"ready"  # the answer to Begin
NOT_NEEDED = ("scipy", "cffi")  # numba tries to import them, which takes longer than numba itself
Work = Callable[[bytes, Any, Boxes], StoredImage]


@dataclass(frozen=True)
class Begin:
    """Start of a shard; the descriptor of its spool file comes with the message."""

    work: str  # module:function, called with the bytes of an image, `settings` and the boxes to blur
    settings: Any
    spool_bytes: int  # current size of the spool file


def find_work(name: str) -> Work:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    return work


class _Child:
    """Decodes bodies in order until the worker closes the socket."""

    def __init__(self, link: socket.socket, slots: Sequence[int]) -> None:
        self._link = link
        self._slots = slots
        self._spool = -1
        self._spool_bytes = 0
        self._work: Work | None = None
        self._settings: Any = None

    def serve(self) -> None:
        """Serve messages until the worker closes the socket."""
        buffer = memoryview(bytearray(MAX_MESSAGE_BYTES))
        while num_bytes := self._link.recv_into(buffer):
            message = buffer[:num_bytes]
            if message == BEGIN:
                self._begin()
                self._link.send(READY)
            else:
                self._link.send(pack_result(self._decode(*pickle.loads(message))))

    def _begin(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._link, MAX_MESSAGE_BYTES, 1)
        if self._spool >= 0:
            os.close(self._spool)
        begin: Begin = pickle.loads(message)
        self._spool, self._spool_bytes = descriptors[0], begin.spool_bytes
        self._work, self._settings = find_work(begin.work), begin.settings
        limit_memory(begin.settings.max_pixels)

    def _decode(self, slot: int, num_bytes: int, boxes: Boxes) -> DecodeResult:
        """The result of one body; an unexpected error is returned, and the worker raises it."""
        if self._work is None:
            return RuntimeError("a body arrived before a Begin message")
        try:
            stored = self._work(os.pread(self._slots[slot], num_bytes, 0), self._settings, boxes)
            _write(self._spool, stored.data, self._spool_bytes)
        except SampleError as error:
            return error
        except MemoryError:  # as if the kernel had killed this process: the image is the cause
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        except Exception as error:  # noqa: BLE001  raised again in the worker
            return error
        self._spool_bytes += len(stored.data)
        return stored._replace(data=b""), len(stored.data)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def main() -> None:
    """Arguments: the descriptors of the socket and of the slots of shared memory."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # under memory pressure, the kernel kills this process and not the worker
    drop_privileges()
    for name in NOT_NEEDED:
        sys.modules[name] = None  # type: ignore[assignment]
    link = socket.socket(fileno=int(sys.argv[1]))
    with suppress(ConnectionError, KeyboardInterrupt):
        _Child(link, [int(argument) for argument in sys.argv[2:]]).serve()
