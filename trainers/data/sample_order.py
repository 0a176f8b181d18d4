"""The order of samples: a pure function of (seed, epoch, position), cut into lanes.

Epoch e of a data set permutes its shards and the rows inside each shard; the epochs lie end to end as one endless
sequence of positions. Consumption index q goes to lane q % n. Inside a block of L * n positions (L = max(1, N // n))
lane l reads the run of L positions that begins at l * L, so that each lane keeps one shard open. The remainder of an
epoch wraps into the next block: nothing is lost or repeated. In a mixture each data set has a consumption index of
its own: the number of slots that earlier steps and slots have given to it.

Step s takes `global_batch_size` slots, the same whatever the world size; a rank owns num_lanes / world_size lanes. So
the only state is `samples_seen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.data.lru_cache import LruCache

Indices = npt.NDArray[np.int64]
CACHED_PERMUTATIONS = 512  # of the rows of a shard: 80 KB each at 10,000 samples
CACHED_EPOCHS = 4  # orders of all shards
READ_AHEAD = 1000  # samples of a lane: about a tenth of a shard


@dataclass(frozen=True)
class SampleIndex:
    """One sample of one data set at one epoch."""

    dataset: int
    epoch: int
    shard: int
    row: int  # among the usable rows of the shard
    position: int  # in the endless sequence of the data set


class Order:
    """Position -> (epoch, shard, row) of one data set."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, dataset: int) -> None:
        self.num_samples = int(sum(shard_sizes))
        self._sizes = np.asarray(shard_sizes, np.int64)
        self._seed, self._dataset = seed, dataset
        self._epochs: LruCache[tuple[Indices, Indices]] = LruCache(CACHED_EPOCHS)
        self._rows: LruCache[Indices] = LruCache(CACHED_PERMUTATIONS)

    def sample(self, position: int) -> SampleIndex:
        """The sample at a position."""
        epoch, index = divmod(position, self.num_samples)
        shards, ends = self._epochs.get_or_make(epoch, lambda: self._permute_shards(epoch))
        slot = int(np.searchsorted(ends, index, side="right"))
        shard = int(shards[slot])
        inside = index - (int(ends[slot - 1]) if slot else 0)
        rows = self._rows.get_or_make((epoch, shard), lambda: self._permute_rows(epoch, shard))
        return SampleIndex(self._dataset, epoch, shard, int(rows[inside]), position)

    def _permute_shards(self, epoch: int) -> tuple[Indices, Indices]:
        order = generator(self._seed, "shards", self._dataset, epoch).permutation(len(self._sizes))
        return order, np.cumsum(self._sizes[order])

    def _permute_rows(self, epoch: int, shard: int) -> Indices:
        return generator(self._seed, "rows", self._dataset, epoch, shard).permutation(int(self._sizes[shard]))


class Stream:
    """Which samples each rank takes at each step."""

    def __init__(
        self, orders: Sequence[Order], weights: Sequence[float], num_lanes: int, global_batch_size: int
    ) -> None:
        self._orders = orders
        self._weights = np.asarray(weights, np.float64) / np.sum(weights)
        self._num_lanes, self._batch = num_lanes, global_batch_size

    def step(self, step: int, rank: int, world_size: int) -> list[SampleIndex]:
        """The samples of a rank's share of a step (counted from 0), lane after lane.

        The shares of all ranks, one after another, are the one-process batch.
        """
        return self._samples(step, self._own_slots(rank, world_size))

    def share_size(self, rank: int, world_size: int) -> int:
        """Samples of a rank's share of a step."""
        return len(self._own_slots(rank, world_size))

    def _own_slots(self, rank: int, world_size: int) -> list[int]:
        own = self._own_lanes(rank, world_size)
        return [slot for lane in own for slot in range(lane, self._batch, self._num_lanes)]

    def ahead(self, step: int, rank: int, world_size: int) -> list[SampleIndex]:
        """The first sample of each of a rank's lanes, about READ_AHEAD samples of the lane later."""
        a_step = self._batch // self._num_lanes  # samples of a lane
        return self._samples(step + -(-READ_AHEAD // a_step), self._own_lanes(rank, world_size))

    def _own_lanes(self, rank: int, world_size: int) -> Sequence[int]:
        check_world_size(self._num_lanes, world_size)
        lanes_a_rank = self._num_lanes // world_size
        return range(rank * lanes_a_rank, (rank + 1) * lanes_a_rank)

    def _samples(self, step: int, slots: Sequence[int]) -> list[SampleIndex]:
        dataset_of_slot, first, before = self._mixture(step)
        found = []
        for slot in slots:
            dataset = int(dataset_of_slot[slot])
            consumed = int(before[dataset]) + slot - int(first[dataset])
            found.append(self._sample(dataset, consumed))
        return found

    def _mixture(self, step: int) -> tuple[Indices, Indices, Indices]:
        """Data set of each slot, first slot of each data set, and what each has given before this step."""
        before, after = self._given(step), self._given(step + 1)
        counts = after - before
        dataset_of_slot = np.repeat(np.arange(len(counts)), counts)
        return dataset_of_slot, np.cumsum(counts) - counts, before

    def _given(self, num_steps: int) -> Indices:
        """Samples that each data set gives in the first steps: about its weight of them.

        The divisor method of Sainte-Lague: sample by sample, the next comes from the data set with the smallest
        (given + 1/2) / weight. Unlike largest remainders it never takes a sample back when the total grows.
        """
        total, count = self._batch * num_steps, len(self._weights)
        surely = np.maximum(0, np.ceil(self._weights * (total - count / 2) - 0.5 - 1e-6))
        given: Indices = surely.astype(np.int64)
        for _ in range(total - int(given.sum())):  # twice `count` at most
            given[np.argmin((given + 0.5) / self._weights)] += 1
        return given

    def _sample(self, dataset: int, consumed: int) -> SampleIndex:
        order, n = self._orders[dataset], self._num_lanes
        run = max(1, order.num_samples // n)
        lane, in_lane = consumed % n, consumed // n
        block, offset = divmod(in_lane, run)
        return order.sample(block * run * n + lane * run + offset)

    def replacement(self, broken: SampleIndex, attempt: int, seed: int) -> SampleIndex:
        """Another sample for a broken one: a function of where the broken one stood."""
        order = self._orders[broken.dataset]
        draw = generator(seed, "replace", broken.dataset, broken.position, attempt)
        return order.sample(broken.epoch * order.num_samples + int(draw.integers(order.num_samples)))


def check_world_size(num_lanes: int, world_size: int) -> None:
    """Raise RecipeError unless the lanes can be dealt out evenly."""
    if num_lanes % world_size:
        raise RecipeError(
            f"data.num_lanes {num_lanes} cannot be dealt out to {world_size} ranks; name a multiple of it"
        )


def generator(*parts: object) -> np.random.Generator:
    """Random draws that are a function of `parts` only."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
