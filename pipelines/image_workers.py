"""Threads that decode and encode one shard's images while others still arrive.

What is done waits in a local file until its turn in the tar comes: one slow URL costs disk, not memory. The codecs
release the interpreter lock, so a few threads keep the core of their task busy beside the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO

from pipelines.blur import Boxes
from pipelines.image import StoredImage
from pipelines.transfer import Body
from schemas.errors import SampleError
from schemas.shard import Place

NUM_THREADS = 2
MAX_WAITING_IMAGES = 128
MAX_WAITING_BYTES = 64 << 20


@dataclass(frozen=True)
class SpooledImage:
    """An image that is done: what the tables say, and where its bytes wait."""

    image: StoredImage  # without its data
    place: Place  # in the spool file


class ImageWorkers:
    """A pool that turns bodies into images. Use as a context manager."""

    def __init__(self, work: Callable[[bytes, Boxes], StoredImage], spool: IO[bytes]) -> None:
        self._work = work
        self._spool = spool
        self._spool_bytes = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="images")
        self._futures: set[Future[None]] = set()
        self._num_images = self._num_bytes = 0  # waiting or worked on
        self.outcomes: dict[int, SpooledImage | SampleError] = {}

    def has_room(self) -> bool:
        """Whether another image may be on its way."""
        return self._num_images < MAX_WAITING_IMAGES and self._num_bytes < MAX_WAITING_BYTES

    def submit(self, row: int, body: Body | bytes, boxes: Boxes = ()) -> None:
        """Take over an image; the body is closed when it has been read. Raises what a thread raised."""
        size = len(body) if isinstance(body, bytes) else _size_of(body)
        with self._lock:
            self._num_images += 1
            self._num_bytes += size
        self._futures.add(self._pool.submit(self._run, row, body, size, boxes))
        if len(self._futures) > 2 * MAX_WAITING_IMAGES:
            self._reap({future for future in self._futures if future.done()})

    def wait_for_room(self) -> None:
        """Block until `has_room`; for sources that need no event loop meanwhile."""
        while not self.has_room():
            self._reap(wait(self._futures, return_when=FIRST_COMPLETED).done)

    def finish(self) -> None:
        """Wait for all images; then `outcomes` has an entry for each row that was submitted."""
        self._reap(wait(self._futures).done)
        self._spool.flush()

    def _reap(self, done: set[Future[None]]) -> None:
        self._futures -= done
        for future in done:
            future.result()

    def _run(self, row: int, body: Body | bytes, size: int, boxes: Boxes) -> None:
        try:
            stored = self._work(body if isinstance(body, bytes) else _read_and_close(body), boxes)
            self.outcomes[row] = SpooledImage(replace(stored, data=b""), self._put(stored.data))
        except SampleError as error:
            self.outcomes[row] = error
        finally:
            with self._lock:
                self._num_images -= 1
                self._num_bytes -= size

    def _put(self, data: bytes) -> Place:
        with self._lock:
            place = Place(self._spool_bytes, len(data))
            self._spool.write(data)
            self._spool_bytes += len(data)
        return place

    def __enter__(self) -> ImageWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _size_of(body: Body) -> int:
    size = body.seek(0, 2)
    body.seek(0)
    return size


def _read_and_close(body: Body) -> bytes:
    with body:
        return body.read()
