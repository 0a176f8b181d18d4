"""The queue between the fetcher and the decoder process, for the images of one shard.

Waiting bodies have a budget of memory; further ones go to temporary files. Stored images wait in a local spool file
until the tar is written in row order: one slow URL costs disk, not memory. A thread feeds the decoder process.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.images.boxes import Boxes
from pairloom.pipelines.images.decoder_process import ImageDecoder, SpooledImage
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import ImageRecipe

STORE_IMAGE = "pairloom.pipelines.images.store_image:store_image"
MAX_WAITING_IMAGES = 128
MAX_WAITING_BYTES = 64 << 20

_Waiting = tuple[int, SpooledBytes | bytes, int, Boxes]  # row, body, number of bytes, boxes to blur


class ImageWorkers:
    """Turns bodies into stored images in the spool file. Use as a context manager, from one thread."""

    def __init__(self, decoder: ImageDecoder, work: str, settings: ImageRecipe, spool: IO[bytes]) -> None:
        """`work`: `module:function`, called in the decoder process with the bytes of an image, `settings` and boxes."""
        self._decoder = decoder
        self._begin = (work, settings, spool)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._num_images = self._num_bytes = 0  # waiting or being decoded
        self._sizes: dict[int, int] = {}  # bytes by row, of bodies that the decoder has
        self._is_cancelled = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._fed: Future[None] = Future()
        self.outcomes: dict[int, SpooledImage | SampleError] = {}

    def has_capacity(self) -> bool:
        """Whether another image fits into the budget. Raises the error of the thread."""
        self._raise()
        return self._num_images < MAX_WAITING_IMAGES and self._num_bytes < MAX_WAITING_BYTES

    def submit(self, row: int, body: SpooledBytes | bytes, boxes: Boxes = ()) -> None:
        """Take over an image; the body is closed after it was read. Raises the error of the thread."""
        self._raise()
        size = len(body) if isinstance(body, bytes) else body.num_bytes
        with self._changed:
            self._num_images += 1
            self._num_bytes += size
        if self._num_bytes > MAX_WAITING_BYTES and isinstance(body, SpooledBytes):
            body.spill()  # requests in flight continue without capacity; their bodies wait on disk
        self._waiting.put((row, body, size, boxes))

    def wait_for_capacity(self) -> None:
        """Block until `has_capacity`, for sources without an event loop."""
        with self._changed:
            self._changed.wait_for(self.has_capacity)

    def finish(self) -> None:
        """Wait for all images; then `outcomes` has an entry per submitted row."""
        self._waiting.put(None)
        self._fed.result()

    def _raise(self) -> None:
        if self._fed.done():
            self._fed.result()

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _feed(self) -> None:
        """Keep the slots of the decoder full; block on the queue only if the decoder has no body."""
        is_open = True
        while is_open or self._decoder.num_sent:
            while is_open and self._decoder.has_slot():
                try:
                    waiting = self._waiting.get(block=not self._decoder.num_sent)
                except queue.Empty:
                    break
                if waiting is None:
                    is_open = False
                else:
                    self._send(*waiting)
            if self._is_cancelled:
                return
            if self._decoder.num_sent:
                self._receive()

    def _send(self, row: int, body: SpooledBytes | bytes, size: int, boxes: Boxes) -> None:
        self._sizes[row] = size
        if isinstance(body, bytes):
            self._decoder.send(row, body, boxes)
            return
        with body:
            self._decoder.send(row, body, boxes)

    def _receive(self) -> None:
        row, reply = self._decoder.receive()
        if not isinstance(reply, SpooledImage | SampleError):
            raise reply
        self.outcomes[row] = reply
        with self._changed:
            self._num_images -= 1
            self._num_bytes -= self._sizes.pop(row)
            self._changed.notify_all()

    def __enter__(self) -> ImageWorkers:
        self._decoder.begin(*self._begin)
        self._fed = self._pool.submit(self._feed)
        self._fed.add_done_callback(self._wake)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_cancelled = True
        self._waiting.put(None)
        self._pool.shutdown()
        self._decoder.end()
