"""From the order of samples to decoded samples, in worker processes; broken samples are replaced and reported."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
from pairloom.trainers.data.prefetch import prefetch
from pairloom.trainers.data.raw_sample import Dataset, RawSample
from pairloom.trainers.data.resize import cut_into, resize_into
from pairloom.trainers.data.sample_order import SampleIndex, Stream, generator
from pairloom.trainers.task import TrainSample, View

logger = logging.getLogger("pairloom.data")
MAX_REPLACEMENTS = 20  # in a row, for one sample; more means that the data set itself is broken
STEPS_AHEAD = 2  # steps that each worker prepares
PARENT_POLL_S = 1.0  # between checks of a worker whether its rank is alive


@dataclass(frozen=True)
class Share:
    """A rank's samples of one step. Images lie in one tensor per view, so that they travel in shared memory."""

    pixels: torch.Tensor
    """uint8 [images, size, size, 3], or of NaFlex [images, N, bytes of a patch]."""
    uids: list[str]
    captions: list[str]
    conversations: list[Conversation | None]
    image_ids: list[str | None]
    has_image: list[bool]
    replaced: list[str]
    """One line per broken sample."""
    grids: list[Grid] = field(default_factory=list)
    """NaFlex: rows and columns of patches of each image."""
    views: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name of the task's extra views: uint8 [images, count, size, size, 3]."""

    def samples(self) -> list[TrainSample]:
        """The samples, in order."""
        images, grids = iter(self.pixels.numpy()), iter(self.grids)
        views = {name: iter(tensor.numpy()) for name, tensor in self.views.items()}
        return [
            TrainSample(
                uid,
                next(images) if has_image else None,
                caption,
                conversation,
                image_id,
                next(grids, None),
                {name: next(crops) for name, crops in views.items()} if has_image else {},
            )
            for uid, caption, conversation, image_id, has_image in zip(
                self.uids, self.captions, self.conversations, self.image_ids, self.has_image, strict=True
            )
        ]


@dataclass(frozen=True)
class Failure:
    """An error that stops the run, carried from a worker process as a value; torch would wrap it in a traceback."""

    error: PairloomError


@dataclass(frozen=True)
class Loader(TorchDataset[Share | Failure]):
    """Step number -> this rank's share, decoded. The result depends on the step only."""

    datasets: Sequence[Dataset]
    stream: Stream
    preprocess: AnyPreprocess
    augment: AugmentRecipe
    seed: int
    rank: int
    world_size: int
    num_patches: Sequence[int] = ()
    """NaFlex: one of them is drawn per step, in place of the preprocess's number."""
    views: tuple[View, ...] = ()
    """Further images of each sample."""
    slots: torch.Tensor | None = None
    """[slots, bytes of the largest share] in shared memory."""

    def __getitem__(self, step: int) -> Share | Failure:
        try:
            self._read_ahead(step)
            share = self.share(step)
            is_in_slot = self.slots is not None and get_worker_info() is not None
            return replace(share, pixels=torch.empty(0, dtype=torch.uint8), views={}) if is_in_slot else share
        except PairloomError as error:
            return Failure(error)

    def _read_ahead(self, step: int) -> None:
        """Announce the next shards to the data sets: a fetch takes longer than a step."""
        for index in self.stream.ahead(step, self.rank, self.world_size):
            self.datasets[index.dataset].read_ahead(index.shard)

    def share(self, step: int) -> Share:
        """This rank's samples of a step. Raises InputError, StorageError."""
        replaced: list[str] = []
        indices = self.stream.step(step, self.rank, self.world_size)
        preprocess = self.preprocess_at(step)
        images, *views = self._buffers(step)
        grids: list[Grid] = []
        num_images = 0
        found: list[RawSample] = []
        for index in indices:
            out = _Out(images[num_images], [view[num_images] for view in views])
            raw, grid = self._sample(index, out, preprocess, replaced)
            found.append(raw)
            num_images += raw.image is not None
            grids += [grid] if grid is not None else []
        return Share(
            torch.from_numpy(images[:num_images]),
            [raw.uid for raw in found],
            [raw.caption for raw in found],
            [raw.conversation for raw in found],
            [raw.image_id for raw in found],
            [raw.image is not None for raw in found],
            replaced,
            grids,
            {view.name: torch.from_numpy(crops[:num_images]) for view, crops in zip(self.views, views, strict=True)},
        )

    def preprocess_at(self, step: int) -> AnyPreprocess:
        """How pixels are prepared at a step: the same on all ranks, for it depends on the seed and the step only."""
        if not isinstance(self.preprocess, NaflexPreprocess) or not self.num_patches:
            return self.preprocess
        drawn = int(generator(self.seed, "num_patches", step).integers(len(self.num_patches)))
        return replace(self.preprocess, num_patches=self.num_patches[drawn])

    def _buffers(self, step: int) -> list[Pixels]:
        """Buffers for the images of a step and for each extra view: [samples of the share, shape of one]."""
        if self.slots is not None and get_worker_info() is not None:
            return [buffer.numpy() for buffer in self._slot(step)]
        return [np.empty(shape, np.uint8) for shape in self._shapes(self.preprocess_at(step))]

    def _shapes(self, preprocess: AnyPreprocess) -> list[tuple[int, ...]]:
        num = self.stream.share_size(self.rank, self.world_size)
        return [(num, *preprocess.out_shape), *((num, view.count, *view.preprocess.out_shape) for view in self.views)]

    def _slot(self, step: int) -> list[torch.Tensor]:
        """The buffers of a step in shared memory."""
        assert self.slots is not None
        slot, start, buffers = self.slots[step % len(self.slots)], 0, []
        for shape in self._shapes(self.preprocess_at(step)):
            num_bytes = math.prod(shape)
            buffers.append(slot[start : start + num_bytes].view(shape))
            start += num_bytes
        return buffers

    def with_slots(self, num_slots: int) -> Loader:
        """This loader with shared memory for the images of `num_slots` steps: new pages cost as much as a resize."""
        largest = self.preprocess
        if isinstance(largest, NaflexPreprocess) and self.num_patches:
            largest = replace(largest, num_patches=max(self.num_patches))
        shape = (num_slots, sum(math.prod(shape) for shape in self._shapes(largest)))
        return replace(self, slots=torch.empty(shape, dtype=torch.uint8).share_memory_())  # type: ignore[no-untyped-call]

    def from_slot(self, step: int, share: Share) -> Share:
        """A share of a worker with a copy of its images; the slot is free again."""
        images, *views = (buffer[: sum(share.has_image)].clone() for buffer in self._slot(step))
        return replace(
            share, pixels=images, views={view.name: crops for view, crops in zip(self.views, views, strict=True)}
        )

    def _sample(
        self, index: SampleIndex, out: _Out, preprocess: AnyPreprocess, replaced: list[str]
    ) -> tuple[RawSample, Grid | None]:
        """The sample of an index, or its replacement; its images are written to `out`."""
        for attempt in range(MAX_REPLACEMENTS):
            chosen = index if attempt == 0 else self.stream.replacement(index, attempt, self.seed)
            try:
                return self._decode(chosen, out, preprocess)
            except SampleError as error:
                replaced.append(f"data set {chosen.dataset}, shard {chosen.shard}, row {chosen.row}: {error}")
        raise InputError(f"{MAX_REPLACEMENTS} broken samples in a row ({replaced[-1]}); check the data set")

    def _decode(self, index: SampleIndex, out: _Out, preprocess: AnyPreprocess) -> tuple[RawSample, Grid | None]:
        raw = self.datasets[index.dataset].read(index.shard, index.row)
        if raw.image is None:
            return raw, None
        try:
            pixels = decode_rgb(raw.image)
        except SampleError as error:
            raise SampleError(error.drop_reason, f"key {raw.key}, uid {raw.uid}: {error}") from error
        for view, crops in zip(self.views, out.views, strict=True):
            self._fill_view(view, crops, pixels, index.epoch, raw.uid)
        if self.augment.random_resized_crop is not None:
            draw = generator(self.seed, "crop", index.epoch, raw.uid)
            pixels = random_crop(pixels, self.augment.random_resized_crop, draw)
        if isinstance(preprocess, NaflexPreprocess):
            return raw, cut_into(out.image, pixels, preprocess)
        resize_into(out.image, pixels, preprocess)
        return raw, None

    def _fill_view(self, view: View, out: Pixels, pixels: Pixels, epoch: int, uid: str) -> None:
        """Write the crops of one view [count, size, size, 3]."""
        for number in range(view.count):
            crop = pixels
            if view.crop_area is not None:
                crop = random_crop(pixels, view.crop_area, generator(self.seed, "view", view.name, number, epoch, uid))
            resize_into(out[number], crop, view.preprocess)


@dataclass(frozen=True)
class _Out:
    """Buffers for the images of one sample."""

    image: Pixels
    views: Sequence[Pixels]


def random_crop(pixels: Pixels, area: tuple[float, float], draw: np.random.Generator) -> Pixels:
    """A crop that keeps a random share of the area and an aspect ratio within 3/4 .. 4/3 of the image's own."""
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
        worker_init_fn=_start_worker,
    )
    copied = (
        share if isinstance(share, Failure) else loader.from_slot(step, share)
        for step, share in zip(numbers, steps, strict=True)
    )
    return prefetch(copied)


def _start_worker(_: int) -> None:
    """Use one thread. Ignore SIGTERM and SIGINT: they reach the whole job, and the rank still needs its workers."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()  # os.getppid() would miss a rank that ended while this worker started
    assert parent is not None
    assert parent.pid is not None
    threading.Thread(target=_exit_with, args=(parent.pid,), name="parent", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _exit_with(parent: int) -> None:
    """Exit when the parent has exited; torch's own workers wait for ever when the pipe is full."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
