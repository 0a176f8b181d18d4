"""The worker's side of the decoder process: sends bodies, receives results, restarts it after a crash."""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import IO

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.images.boxes import Boxes
from pairloom.pipelines.images.decoder_child import BEGIN, MAX_MESSAGE_BYTES, READY, Begin
from pairloom.pipelines.images.decoder_messages import DecodeResult, InvalidMessageError, unpack_result
from pairloom.pipelines.images.stored_image import StoredImage
from pairloom.schemas.data_set.shard import ByteRange
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError, ShardError
from pairloom.schemas.recipes.curate import ImageRecipe

NUM_SLOTS = 4  # bodies in shared memory; enough that the process never waits
KEPT_SLOT_BYTES = 4 << 20  # a larger slot is truncated after use
NUM_ATTEMPTS = 2  # per image: the image before it may have caused the first crash
_MAIN = "from pairloom.pipelines.images.decoder_child import main; main()"  # not as __main__: Begin is pickled
MAX_SECONDS = 300  # per image; then the process is killed


@dataclass(frozen=True)
class SpooledImage:
    """A stored image: its metadata, and its bytes in the spool file."""

    image: StoredImage  # without its data
    byte_range: ByteRange  # in the spool file


Reply = SpooledImage | Exception  # a SampleError is a result; other errors are raised


@dataclass
class _Sent:
    """A body in a slot, without a result yet."""

    row: int
    slot: int
    num_bytes: int
    boxes: Boxes  # to blur
    num_attempts: int = 1


class ImageDecoder:
    """One child process, kept over shards. Not thread-safe. Results come in the order of the bodies."""

    def __init__(self) -> None:
        self._slots = [os.memfd_create(f"body-{index}") for index in range(NUM_SLOTS)]
        self._free = list(range(NUM_SLOTS))
        self._sent: deque[_Sent] = deque()
        self._begin: Begin | None = None
        self._spool: IO[bytes] | None = None
        self._spool_bytes = 0
        self._buffer = memoryview(bytearray(MAX_MESSAGE_BYTES))
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    @property
    def num_sent(self) -> int:
        """Number of bodies without a result."""
        return len(self._sent)

    def has_slot(self) -> bool:
        """Whether `send` may be called."""
        return bool(self._free)

    def begin(self, work: str, settings: ImageRecipe, spool: IO[bytes]) -> None:
        """Start a shard. `work`: `module:function`, whose stored images go to the spool file. Raises ShardError."""
        plain = SimpleNamespace(**settings.model_dump())  # a recipe needs pydantic, which the child does not import
        self._begin, self._spool, self._spool_bytes = Begin(work, plain, 0), spool, 0
        if self._process is None or self._process.poll() is not None:
            self._start()
        else:
            self._send_begin()

    def send(self, row: int, body: bytes | SpooledBytes, boxes: Boxes = ()) -> None:
        """Copy a body to shared memory and announce it."""
        slot = self._free.pop()
        descriptor = self._slots[slot]
        os.lseek(descriptor, 0, os.SEEK_SET)
        if isinstance(body, bytes):
            with open(descriptor, "wb", closefd=False) as file:
                num_bytes = file.write(body)
        else:
            body.copy_to(descriptor)
            num_bytes = body.num_bytes
        self._sent.append(_Sent(row, slot, num_bytes, boxes))
        self._announce(self._sent[-1])

    def receive(self) -> tuple[int, Reply]:
        """(row, next result). An image on which the process died twice gives `decoder_crashed`."""
        result = self._receive_result()
        while result is None:
            first = self._sent[0]
            status = self._stop()
            self._start()
            if first.num_attempts >= NUM_ATTEMPTS:
                self._release()
                self._resend()
                return first.row, SampleError(DropReason.DECODER_CRASHED, f"the decoder died ({status})")
            first.num_attempts += 1
            self._resend()
            result = self._receive_result()
        return self._release(), result if isinstance(result, Exception) else self._spooled(*result)

    def end(self) -> None:
        """End a shard and drop bodies without a result."""
        if self._sent:
            self._stop()
            while self._sent:
                self._release()
        self._begin = self._spool = None

    def close(self) -> None:
        """Stop the process."""
        self._stop()
        while self._slots:
            os.close(self._slots.pop())

    def _spooled(self, image: StoredImage, num_bytes: int) -> SpooledImage:
        spooled = SpooledImage(image, ByteRange(self._spool_bytes, num_bytes))
        self._spool_bytes += num_bytes
        return spooled

    def _release(self) -> int:
        """Free the slot of the oldest body. Returns its row."""
        sent = self._sent.popleft()
        if sent.num_bytes > KEPT_SLOT_BYTES:
            os.ftruncate(self._slots[sent.slot], 0)
        self._free.append(sent.slot)
        return sent.row

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", MAX_SECONDS, 0))
        descriptors = [theirs.fileno(), *self._slots]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-P", "-c", _MAIN, *map(str, descriptors)]
        self._process = subprocess.Popen(command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._link = ours
        self._send_begin()

    def _send_begin(self) -> None:
        """Announce the shard. Raises ShardError if the process cannot start: no image is the cause."""
        if self._begin is None or self._spool is None or self._link is None:
            raise RuntimeError("begin() was not called")
        begin = Begin(self._begin.work, self._begin.settings, self._spool_bytes)
        with suppress(BrokenPipeError, ConnectionResetError):  # the missing answer shows it
            self._link.send(BEGIN)
            socket.send_fds(self._link, [pickle.dumps(begin)], [self._spool.fileno()])
        if self._receive_message() != READY:
            raise ShardError(f"the decoder process does not start ({self._stop()}); run `pairloom doctor`")

    def _announce(self, sent: _Sent) -> None:
        """Send the message for a body. A dead process is detected later, by its missing answer."""
        with suppress(BrokenPipeError, ConnectionResetError):
            if self._link is not None:
                self._link.send(pickle.dumps((sent.slot, sent.num_bytes, sent.boxes)))

    def _resend(self) -> None:
        for sent in self._sent:
            self._announce(sent)

    def _receive_message(self) -> memoryview:
        """One message, valid until the next call; empty if the process died or hangs."""
        if self._link is None:
            return self._buffer[:0]
        try:
            return self._buffer[: self._link.recv_into(self._buffer)]
        except (ConnectionResetError, BlockingIOError):  # the latter: no answer within MAX_SECONDS
            return self._buffer[:0]

    def _receive_result(self) -> DecodeResult | None:
        """One result; None if the process died, hangs or sent a malformed message."""
        message = self._receive_message()
        if not message or self._spool is None:
            return None
        try:
            return unpack_result(message, os.fstat(self._spool.fileno()).st_size - self._spool_bytes)
        except InvalidMessageError:
            return None

    def _stop(self) -> str:
        """Stop the process. Returns its exit status for messages."""
        if self._process is None or self._link is None:
            return "not started"
        self._link.close()
        try:
            status = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = self._link = None
        return f"signal {-status}" if status < 0 else f"exit status {status}"


@lru_cache(maxsize=1)
def image_decoder() -> ImageDecoder:
    """The one decoder of this worker process."""
    decoder = ImageDecoder()
    atexit.register(decoder.close)
    return decoder
