"""From places in the order to decoded samples, in worker processes; broken samples are replaced, never hidden."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from pairloom.schemas.conversation import Conversation
from pairloom.schemas.errors import InputError, PairloomError, SampleError
from pairloom.schemas.images.decode import Pixels, decode_rgb
from pairloom.schemas.images.naflex import AnyPreprocess, Grid, NaflexPreprocess
from pairloom.schemas.recipes.train import AugmentRecipe
from pairloom.trainers.data.prefetch import in_thread
from pairloom.trainers.data.raw_sample import Dataset, RawSample
from pairloom.trainers.data.resize import cut_into, resize_into
from pairloom.trainers.data.sample_order import Place, Stream, generator
from pairloom.trainers.task import TrainSample

logger = logging.getLogger("pairloom.data")
MAX_REPLACEMENTS = 20  # in a row, for one slot; more means that the data set itself is broken
STEPS_AHEAD = 2  # that each worker has ready
SECONDS_BETWEEN_LOOKS = 1.0  # of a worker, whether its rank is alive


@dataclass(frozen=True)
class Share:
    """A rank's samples of one step: pictures in one tensor, so that it travels in shared memory."""

    pixels: torch.Tensor  # uint8 [images, size, size, 3]; of NaFlex [images, N, bytes of a patch]
    uids: list[str]
    captions: list[str]
    conversations: list[Conversation | None]
    image_ids: list[str | None]
    has_image: list[bool]
    replaced: list[str]  # what was broken, one line each
    grids: list[Grid] = field(default_factory=list)  # NaFlex: of each picture

    def samples(self) -> list[TrainSample]:
        """The samples, in order."""
        images, grids = iter(self.pixels.numpy()), iter(self.grids)
        return [
            TrainSample(uid, next(images) if has_image else None, caption, conversation, image_id, next(grids, None))
            for uid, caption, conversation, image_id, has_image in zip(
                self.uids, self.captions, self.conversations, self.image_ids, self.has_image, strict=True
            )
        ]


@dataclass(frozen=True)
class Failure:
    """What stops the run, carried from a worker process as it is; torch would wrap it in a traceback."""

    error: PairloomError


@dataclass(frozen=True)
class Loader(TorchDataset[Share | Failure]):
    """Step number -> this rank's share, decoded. The result depends on nothing but the step."""

    datasets: Sequence[Dataset]
    stream: Stream
    preprocess: AnyPreprocess
    augment: AugmentRecipe
    seed: int
    rank: int
    world_size: int
    num_patches: Sequence[int] = ()  # NaFlex: one of them a step, instead of the preprocess's own number
    slots: torch.Tensor | None = None  # [slots, bytes of the largest share] in shared memory

    def __getitem__(self, step: int) -> Share | Failure:
        try:
            self._read_ahead(step)
            share = self.share(step)
            is_in_slot = self.slots is not None and get_worker_info() is not None
            return replace(share, pixels=torch.empty(0, dtype=torch.uint8)) if is_in_slot else share
        except PairloomError as error:
            return Failure(error)

    def _read_ahead(self, step: int) -> None:
        """Tell the data sets which shards come: a fetch takes longer than a step."""
        for place in self.stream.ahead(step, self.rank, self.world_size):
            self.datasets[place.dataset].read_ahead(place.shard)

    def share(self, step: int) -> Share:
        """This rank's samples of a step. Raises InputError, StorageError."""
        replaced: list[str] = []
        places = self.stream.step(step, self.rank, self.world_size)
        preprocess = self.preprocess_at(step)
        pictures = self._room(step, len(places))
        grids: list[Grid] = []
        num_pictures = 0
        found: list[RawSample] = []
        for place in places:
            raw, grid = self._sample(place, pictures[num_pictures], preprocess, replaced)
            found.append(raw)
            num_pictures += raw.image is not None
            grids += [grid] if grid is not None else []
        return Share(
            torch.from_numpy(pictures[:num_pictures]),
            [raw.uid for raw in found],
            [raw.caption for raw in found],
            [raw.conversation for raw in found],
            [raw.image_id for raw in found],
            [raw.image is not None for raw in found],
            replaced,
            grids,
        )

    def preprocess_at(self, step: int) -> AnyPreprocess:
        """How pixels are prepared at a step: the same on all ranks, for it depends on the seed and the step only."""
        if not isinstance(self.preprocess, NaflexPreprocess) or not self.num_patches:
            return self.preprocess
        drawn = int(generator(self.seed, "num_patches", step).integers(len(self.num_patches)))
        return replace(self.preprocess, num_patches=self.num_patches[drawn])

    def _room(self, step: int, num: int) -> Pixels:
        """Where the pictures of a step go: [num, *room of one]."""
        if self.slots is not None and get_worker_info() is not None:
            slot: Pixels = self._slot(step, num).numpy()
            return slot
        return np.empty((num, *self.preprocess_at(step).room), np.uint8)

    def _slot(self, step: int, num: int) -> torch.Tensor:
        assert self.slots is not None
        room = self.preprocess_at(step).room
        return self.slots[step % len(self.slots)][: num * math.prod(room)].view(num, *room)

    def with_slots(self, num_slots: int) -> Loader:
        """The same with shared memory for the pictures of so many steps: fresh pages cost as much as a resize."""
        num = len(self.stream.step(0, self.rank, self.world_size))
        largest = self.preprocess
        if isinstance(largest, NaflexPreprocess) and self.num_patches:
            largest = replace(largest, num_patches=max(self.num_patches))
        shape = (num_slots, num * math.prod(largest.room))
        return replace(self, slots=torch.empty(shape, dtype=torch.uint8).share_memory_())  # type: ignore[no-untyped-call]

    def from_slot(self, step: int, share: Share) -> Share:
        """A share of a worker with a copy of its pictures; the slot is free again."""
        return replace(share, pixels=self._slot(step, sum(share.has_image)).clone())

    def _sample(
        self, place: Place, room: Pixels, preprocess: AnyPreprocess, replaced: list[str]
    ) -> tuple[RawSample, Grid | None]:
        """The sample at a place, or one in its stead; its picture goes to `room`."""
        for attempt in range(MAX_REPLACEMENTS):
            chosen = place if attempt == 0 else self.stream.replacement(place, attempt, self.seed)
            try:
                return self._decode(chosen, room, preprocess)
            except SampleError as error:
                replaced.append(f"data set {chosen.dataset}, shard {chosen.shard}, row {chosen.row}: {error}")
        raise InputError(f"{MAX_REPLACEMENTS} broken samples in a row ({replaced[-1]}); check the data set")

    def _decode(self, place: Place, room: Pixels, preprocess: AnyPreprocess) -> tuple[RawSample, Grid | None]:
        raw = self.datasets[place.dataset].read(place.shard, place.row)
        if raw.image is None:
            return raw, None
        try:
            pixels = decode_rgb(raw.image)
        except SampleError as error:
            raise SampleError(error.drop_reason, f"key {raw.key}, uid {raw.uid}: {error}") from error
        if self.augment.random_resized_crop is not None:
            draw = generator(self.seed, "crop", place.epoch, raw.uid)
            pixels = random_crop(pixels, self.augment.random_resized_crop, draw)
        if isinstance(preprocess, NaflexPreprocess):
            return raw, cut_into(room, pixels, preprocess)
        resize_into(room, pixels, preprocess)
        return raw, None


def random_crop(pixels: Pixels, area: tuple[float, float], draw: np.random.Generator) -> Pixels:
    """A crop that keeps a random share of the area and an aspect ratio within 3/4 .. 4/3 of the picture's own."""
    height, width = pixels.shape[:2]
    share = draw.uniform(*area)
    ratio = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_height = min(height, max(1, round(height * np.sqrt(share / ratio))))
    crop_width = min(width, max(1, round(width * np.sqrt(share * ratio))))
    top, left = draw.integers(height - crop_height + 1), draw.integers(width - crop_width + 1)
    return np.ascontiguousarray(pixels[top : top + crop_height, left : left + crop_width])


def shares(loader: Loader, first_step: int, num_steps: int, num_workers: int) -> Iterator[Share]:
    """The shares of steps first_step .. num_steps - 1, in order, decoded ahead of the model."""
    numbers = range(first_step, num_steps)
    found = _from_workers(loader, numbers, num_workers) if num_workers else (loader[step] for step in numbers)
    for share in found:
        if isinstance(share, Failure):
            raise share.error
        for line in share.replaced:
            logger.warning("broken sample replaced: %s", line)
        yield share


def _from_workers(loader: Loader, numbers: range, num_workers: int) -> Iterator[Share | Failure]:
    loader = loader.with_slots(num_workers * STEPS_AHEAD + 2)  # a slot is written again when it was copied long ago
    steps = DataLoader(
        loader,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=STEPS_AHEAD,
        worker_init_fn=_calm_worker,
    )
    copied = (
        share if isinstance(share, Failure) else loader.from_slot(step, share)
        for step, share in zip(numbers, steps, strict=True)
    )
    return in_thread(copied)


def _calm_worker(_: int) -> None:
    """One thread; and signals that reach the whole job are the rank's to answer, which still needs its workers."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(os.getppid(),), name="parent", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _leave_with(parent: int) -> None:
    """End this process after its parent; torch's own workers wait for ever when what they have sent fills the pipe."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
