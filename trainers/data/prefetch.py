"""Compute the next value of an iterator in a thread, before it is requested."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.1  # between checks whether the consumer has stopped


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(values: Iterator[T]) -> Iterator[T]:
    """The same values and errors; one value is computed ahead."""
    ready: queue.Queue[T | _End] = queue.Queue(1)
    stopped = threading.Event()

    def put(value: T | _End) -> None:
        while not stopped.is_set():
            try:
                return ready.put(value, timeout=POLL_S)
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for value in values:
                put(value)
                if stopped.is_set():
                    return
            put(_End(None))
        except BaseException as error:  # noqa: BLE001  raised where the value is requested
            put(_End(error))

    thread = threading.Thread(target=fetch, name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(value := ready.get(), _End):
            yield value
        if value.error is not None:
            raise value.error
    finally:
        stopped.set()
        thread.join()
