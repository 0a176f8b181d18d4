"""Batches filled across shards; their inputs are loaded ahead of the model.

An actor works on several shards. They submit their rows one shard after the other; threads load the rows, and each
*lane* (inputs of one shape for one model) computes a batch when it is full. An incomplete batch is computed when no
shard has more rows to submit.

The values of a row must not depend on the other rows of its batch, on workers or on the order of shards. A matrix
product of another shape may sum in another order. So every batch has the same size, padded with its last row, and one
thread computes it. On a CPU, several threads compute one batch each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock, Semaphore
from typing import Any

import numpy as np
import numpy.typing as npt

BATCHES_AHEAD = 2  # loaded or being loaded, in addition to those being computed

Values = npt.NDArray[np.float32]  # [size of a batch, ...]
Compute = Callable[[Sequence[Any]], Values]
"""Inputs of a batch -> values [batch size, ...]."""


class Batch:
    """Inputs that are computed together, and their values."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self._is_sent = Event()

    def send(self, values: Future[Values]) -> None:
        """Set the future of the values."""
        self._values = values
        self._is_sent.set()

    def values(self) -> Values:
        """Wait for the values. Raises the error of their computation."""
        self._is_sent.wait()
        return self._values.result()


class PendingRow:
    """One row of a batch that may not be computed yet."""

    def __init__(self, batch: Batch, row: int) -> None:
        self._batch, self._row = batch, row

    def values(self) -> Values:
        """The values of this row: [...]. Waits for its batch."""
        values: Values = self._batch.values()[self._row]
        return values


class Lane:
    """Fills batches of inputs of one shape for one model."""

    def __init__(self, compute: Compute, size: int, threads: ThreadPoolExecutor, num_threads: int) -> None:
        self._compute, self._size, self._threads = compute, size, threads
        self.capacity = Semaphore((num_threads + BATCHES_AHEAD) * size)  # each input holds one until it is computed
        self._batch, self._lock = Batch(), Lock()

    def add(self, inputs: Any) -> PendingRow:
        """Add the inputs of one row; the caller has acquired `capacity`."""
        with self._lock:
            self._batch.inputs.append(inputs)
            row = PendingRow(self._batch, len(self._batch.inputs) - 1)
            if len(self._batch.inputs) == self._size:
                self._send()
        return row

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
            self.capacity.release(len(inputs))


class ShardRows:
    """Submits the rows of one shard."""

    def __init__(self, filler: BatchFiller) -> None:
        self._filler = filler
        self.loading: list[Future[PendingRow | None]] = []

    def load(self, lane: Lane, load: Callable[[], Any]) -> Future[PendingRow | None]:
        """Submit a row whose inputs `load` returns in another thread; the result is None if `load` returns None."""
        lane.capacity.acquire()
        self._filler.expect(1)
        self.loading.append(self._filler.loaders.submit(self._load, lane, load))
        return self.loading[-1]

    def add(self, lane: Lane, inputs: Any) -> PendingRow:
        """Submit a row with its inputs."""
        lane.capacity.acquire()
        return lane.add(inputs)

    def _load(self, lane: Lane, load: Callable[[], Any]) -> PendingRow | None:
        row = None
        try:
            inputs = load()
            row = None if inputs is None else lane.add(inputs)
        finally:
            if row is None:
                lane.capacity.release()
            self._filler.expect(-1)
        return row


class BatchFiller:
    """Lanes and threads that the shards of one actor share."""

    def __init__(self, batch_size: int, num_loaders: int, num_threads: int) -> None:
        self.loaders = ThreadPoolExecutor(max(1, num_loaders))
        self._batch_size, self._num_threads = batch_size, num_threads
        self._threads = ThreadPoolExecutor(num_threads)
        self._lanes: list[Lane] = []
        self._slot, self._lock = Lock(), Lock()
        self._num_expected = 0  # shards with rows to submit, and rows being loaded

    def lane(self, compute: Compute) -> Lane:
        """A new lane for inputs of one shape."""
        lane = Lane(compute, self._batch_size, self._threads, self._num_threads)
        with self._lock:
            self._lanes.append(lane)
        return lane

    @contextmanager
    def slot(self) -> Iterator[ShardRows]:
        """Wait for the slot of this actor, then submit the rows of one shard. At the end, all rows are loaded."""
        rows = ShardRows(self)
        self.expect(1)
        try:
            with self._slot:
                yield rows
        finally:
            self.expect(-1)
            wait(rows.loading)

    def expect(self, number: int) -> None:
        """Change the number of sources that may add rows; at 0, incomplete batches are computed."""
        with self._lock:
            self._num_expected += number
            if self._num_expected == 0:
                for lane in self._lanes:
                    lane.flush()
