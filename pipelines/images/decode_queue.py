"""Images of one shard on their way through the process that decodes, while others still arrive.

Bodies wait here within a budget of bytes; more go to temporary files. What is done waits in a local file until its
turn in the tar comes: one slow URL costs disk, not memory. A thread feeds the process and takes its answers.
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

_Waiting = tuple[int, SpooledBytes | bytes, int, Boxes]  # row, body, its size, what is to be blurred


class ImageWorkers:
    """Turns bodies into images in the spool file. Use as a context manager, from one thread."""

    def __init__(self, decoder: ImageDecoder, work: str, settings: ImageRecipe, spool: IO[bytes]) -> None:
        """`work` is `module:function`, called in the decoder's process with an image's bytes, `settings` and boxes."""
        self._decoder = decoder
        self._begin = (work, settings, spool)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._num_images = self._num_bytes = 0  # waiting or worked on
        self._sizes: dict[int, int] = {}  # by row, of those that the decoder has
        self._is_given_up = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._fed: Future[None] = Future()
        self.outcomes: dict[int, SpooledImage | SampleError] = {}

    def has_capacity(self) -> bool:
        """Whether another image may be on its way. Raises what the thread raised."""
        self._raise()
        return self._num_images < MAX_WAITING_IMAGES and self._num_bytes < MAX_WAITING_BYTES

    def submit(self, row: int, body: SpooledBytes | bytes, boxes: Boxes = ()) -> None:
        """Take over an image; the body is closed when it has been read. Raises what the thread raised."""
        self._raise()
        size = len(body) if isinstance(body, bytes) else body.num_bytes
        with self._changed:
            self._num_images += 1
            self._num_bytes += size
        if self._num_bytes > MAX_WAITING_BYTES and isinstance(body, SpooledBytes):
            body.spill()  # those in flight go on when there is no room: they wait on disk
        self._waiting.put((row, body, size, boxes))

    def wait_for_capacity(self) -> None:
        """Block until `has_capacity`; for sources that need no event loop meanwhile."""
        with self._changed:
            self._changed.wait_for(self.has_capacity)

    def finish(self) -> None:
        """Wait for all images; then `outcomes` has an entry for each row that was submitted."""
        self._waiting.put(None)
        self._fed.result()

    def _raise(self) -> None:
        if self._fed.done():
            self._fed.result()

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _feed(self) -> None:
        """Keep the slots of the decoder full; wait for bodies only when it has none."""
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
            if self._is_given_up:
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
        self._is_given_up = True
        self._waiting.put(None)
        self._pool.shutdown()
        self._decoder.end()
