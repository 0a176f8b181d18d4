"""Batches of a data set in the exact order of training, for torch. Internal: use `DataSet.torch`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.trainers.data.dataset import open_pairs
from pairloom.trainers.data.loader import Loader, shares
from pairloom.trainers.data.sample_order import Order, Stream

ENDLESS = 1 << 62
NUM_LANES = 8


@dataclass(frozen=True)
class Position:
    """Whose batches, from where on."""

    rank: int
    world_size: int
    samples_seen: int


def _num_lanes(global_batch_size: int, world_size: int) -> int:
    """The lanes of training (8) as far as the batch allows: the same for every number of ranks that divides them."""
    lanes = math.gcd(NUM_LANES, global_batch_size)
    return lanes if lanes % world_size == 0 else world_size


class TorchBatches(IterableDataset[dict[str, Any]]):
    """One dict per step: `pixels` (uint8 [batch_size, image_size, image_size, 3]), `captions`, `uids`, `samples_seen`.

    `samples_seen` of a batch is the state after it: pass it to `DataSet.torch` to go on with the next one. Use it
    with `torch.utils.data.DataLoader(batches, batch_size=None)` or by itself.
    """

    def __init__(self, path: str, batch_size: int, position: Position, image_size: int, seed: int) -> None:
        self._global = batch_size * position.world_size
        if position.samples_seen % self._global:
            raise InputError(
                f"samples_seen {position.samples_seen} is no multiple of batch_size * world_size {self._global}"
            )
        self._position = position
        data_set = open_pairs(DataSource(path=path))
        order = Order(data_set.shard_sizes, seed, 0)
        stream = Stream([order], [1.0], _num_lanes(self._global, position.world_size), self._global)
        preprocess = Preprocess(image_size, "center_crop")
        self._loader = Loader([data_set], stream, preprocess, AugmentRecipe(), seed, position.rank, position.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = self._position.samples_seen // self._global
        for step, share in enumerate(shares(self._loader, first, ENDLESS, num_workers=0), start=first):
            yield {
                "pixels": share.pixels,
                "captions": share.captions,
                "uids": share.uids,
                "samples_seen": (step + 1) * self._global,
            }
