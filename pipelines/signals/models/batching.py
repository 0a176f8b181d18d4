"""Batches filled across shards, their inputs decoded ahead of the model.

An actor holds several shards. They hand in their rows one shard after the other; threads load what is handed in, and
each *lane* (inputs of one shape for one model) computes a batch when it is full. An incomplete batch is computed when
no shard has rows to hand in.

What a row gets must not depend on the rows beside it, on workers or on the order of shards. A matrix product of
another shape may add in another order: so every batch has the same size, filled up with its last row, and one thread
computes it. On a CPU several threads compute a batch each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock, Semaphore
from typing import Any

import numpy as np
import numpy.typing as npt

BATCHES_AHEAD = 2  # loaded or being loaded, beside those that are computed

Values = npt.NDArray[np.float32]  # [size of a batch, ...]
Compute = Callable[[Sequence[Any]], Values]
"""Inputs of a batch -> a row of values for each."""


class Batch:
    """Inputs that are computed together, and what becomes of them."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self._is_sent = Event()

    def send(self, values: Future[Values]) -> None:
        """The batch is on its way."""
        self._values = values
        self._is_sent.set()

    def values(self) -> Values:
        """Wait for the values; raises what computing them raised."""
        self._is_sent.wait()
        return self._values.result()


class Place:
    """Where the values of one input will be found."""

    def __init__(self, batch: Batch, row: int) -> None:
        self._batch, self._row = batch, row

    def values(self) -> Values:
        """The values of this input: [...]. Waits for its batch."""
        values: Values = self._batch.values()[self._row]
        return values


class Lane:
    """Fills batches of inputs of one shape for one model."""

    def __init__(self, compute: Compute, size: int, threads: ThreadPoolExecutor, num_threads: int) -> None:
        self._compute, self._size, self._threads = compute, size, threads
        self.room = Semaphore((num_threads + BATCHES_AHEAD) * size)  # taken by each input until it is computed
        self._batch, self._lock = Batch(), Lock()

    def add(self, inputs: Any) -> Place:
        """Add what one row gives; the caller has taken room for it."""
        with self._lock:
            self._batch.inputs.append(inputs)
            place = Place(self._batch, len(self._batch.inputs) - 1)
            if len(self._batch.inputs) == self._size:
                self._send()
        return place

    def flush(self) -> None:
        """Compute an incomplete batch."""
        with self._lock:
            if self._batch.inputs:
                self._send()

    def _send(self) -> None:
        batch, self._batch = self._batch, Batch()
        batch.send(self._threads.submit(self._values_of, batch))

    def _values_of(self, batch: Batch) -> Values:
        inputs, batch.inputs = batch.inputs, []
        try:
            return self._compute(inputs + inputs[-1:] * (self._size - len(inputs)))
        finally:
            self.room.release(len(inputs))


class ShardRows:
    """Hands in the rows of one shard."""

    def __init__(self, filler: BatchFiller) -> None:
        self._filler = filler
        self.loading: list[Future[Place | None]] = []

    def load(self, lane: Lane, load: Callable[[], Any]) -> Future[Place | None]:
        """A row whose input `load` gives, in another thread; None where it gives None."""
        lane.room.acquire()
        self._filler.expect(1)
        self.loading.append(self._filler.loaders.submit(self._load, lane, load))
        return self.loading[-1]

    def add(self, lane: Lane, inputs: Any) -> Place:
        """A row whose input is there."""
        lane.room.acquire()
        return lane.add(inputs)

    def _load(self, lane: Lane, load: Callable[[], Any]) -> Place | None:
        place = None
        try:
            inputs = load()
            place = None if inputs is None else lane.add(inputs)
        finally:
            if place is None:
                lane.room.release()
            self._filler.expect(-1)
        return place


class BatchFiller:
    """What the shards of one actor share."""

    def __init__(self, batch_size: int, num_loaders: int, num_threads: int) -> None:
        self.loaders = ThreadPoolExecutor(max(1, num_loaders))
        self._batch_size, self._num_threads = batch_size, num_threads
        self._threads = ThreadPoolExecutor(num_threads)
        self._lanes: list[Lane] = []
        self._turn, self._lock = Lock(), Lock()
        self._num_expected = 0  # shards that have rows to hand in, and rows that are being loaded

    def lane(self, compute: Compute) -> Lane:
        """A lane of its own for inputs of one shape."""
        lane = Lane(compute, self._batch_size, self._threads, self._num_threads)
        with self._lock:
            self._lanes.append(lane)
        return lane

    @contextmanager
    def turn(self) -> Iterator[ShardRows]:
        """Hand in the rows of one shard, when it is its turn. Everything is loaded when this ends, well or not."""
        rows = ShardRows(self)
        self.expect(1)
        try:
            with self._turn:
                yield rows
        finally:
            self.expect(-1)
            wait(rows.loading)

    def expect(self, number: int) -> None:
        """So many more (or fewer) things may bring rows; when nothing may, batches go as they are."""
        with self._lock:
            self._num_expected += number
            if self._num_expected == 0:
                for lane in self._lanes:
                    lane.flush()
