"""The process in which images are decoded: when a decoder crashes, this process dies and its worker does not.

It speaks with `pipelines.image_decoder` over a socket of messages. Bodies come in shared memory, what is to be stored
goes straight to the spool file of the shard: the socket carries only what the tables say.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines.blur import Boxes
from pipelines.image import StoredImage
from schemas.errors import SampleError
from schemas.shard import Place

MAX_MESSAGE_BYTES = 1 << 17
READY = b"ready"  # the answer to Begin
Work = Callable[[bytes, Any, Boxes], StoredImage]


@dataclass(frozen=True)
class Begin:
    """A shard begins; its spool file comes along as a descriptor."""

    work: str  # module:function, called with the bytes of an image, `settings` and the boxes to blur
    settings: Any
    spool_bytes: int  # there already


@dataclass(frozen=True)
class SpooledImage:
    """An image that is done: what the tables say, and where its bytes wait."""

    image: StoredImage  # without its data
    place: Place  # in the spool file


Reply = SpooledImage | SampleError | Exception


def find_work(name: str) -> Work:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    return work


def _serve(link: socket.socket, slots: Sequence[int]) -> None:
    """Answer every body, in order, until the worker hangs up."""
    begin, work, spool, spool_bytes = None, None, -1, 0
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, MAX_MESSAGE_BYTES, 1)
        if not message:
            return
        if descriptors:
            if spool >= 0:
                os.close(spool)
            begin = pickle.loads(message)
            work, spool, spool_bytes = find_work(begin.work), descriptors[0], begin.spool_bytes
            link.send(READY)
            continue
        slot, num_bytes, boxes = pickle.loads(message)
        if work is None or begin is None:
            raise RuntimeError("a body came before its shard began")
        body = os.pread(slots[slot], num_bytes, 0)
        reply = _answer(partial(work, body, begin.settings, boxes), spool, spool_bytes)
        if isinstance(reply, SpooledImage):
            spool_bytes += reply.place.num_bytes
        link.send(pickle.dumps(reply))


def _answer(store: Callable[[], StoredImage], spool: int, spool_bytes: int) -> Reply:
    """What came of one body; an unexpected error travels to the worker, which raises it."""
    try:
        stored = store()
        _write(spool, stored.data, spool_bytes)
    except SampleError as error:
        return error
    except Exception as error:  # noqa: BLE001  raised again in the worker
        return error
    return SpooledImage(replace(stored, data=b""), Place(spool_bytes, len(stored.data)))


def _write(descriptor: int, data: bytes, offset: int) -> None:
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def main() -> None:
    """Arguments: the descriptors of the socket and of the slots of shared memory."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, the system shall kill this process and not the worker
    link = socket.socket(fileno=int(sys.argv[1]))
    with suppress(ConnectionError, KeyboardInterrupt):
        _serve(link, [int(argument) for argument in sys.argv[2:]])
