"""From places in the order to decoded samples, in worker processes; broken samples are replaced, never hidden."""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from schemas.conversation import Conversation
from schemas.errors import InputError, PairloomError, SampleError
from schemas.image_decode import Pixels, decode_rgb
from schemas.preprocess import Preprocess
from schemas.train_recipe import AugmentRecipe
from trainers.data.raw_sample import Dataset, RawSample
from trainers.data.resize import resize
from trainers.data.stream import Place, Stream, generator
from trainers.task import TrainSample

logger = logging.getLogger("pairloom.data")
MAX_REPLACEMENTS = 20  # in a row, for one slot; more means that the data set itself is broken
STEPS_AHEAD = 2  # that each worker has ready


@dataclass(frozen=True)
class Share:
    """A rank's samples of one step: pictures in one tensor, so that it travels in shared memory."""

    pixels: torch.Tensor  # [images, size, size, 3] uint8
    uids: list[str]
    captions: list[str]
    conversations: list[Conversation | None]
    has_image: list[bool]
    replaced: list[str]  # what was broken, one line each

    def samples(self) -> list[TrainSample]:
        """The samples, in order."""
        images = iter(self.pixels.numpy())
        return [
            TrainSample(uid, next(images) if has_image else None, caption, conversation)
            for uid, caption, conversation, has_image in zip(
                self.uids, self.captions, self.conversations, self.has_image, strict=True
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
    preprocess: Preprocess
    augment: AugmentRecipe
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> Share | Failure:
        try:
            self._read_ahead(step)
            return self.share(step)
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
        pictures, num_pictures = empty_pictures(len(places), self.preprocess.size), 0
        found: list[RawSample] = []
        for place in places:
            raw, pixels = self._sample(place, replaced)
            found.append(raw)
            if pixels is not None:
                pictures[num_pictures] = torch.from_numpy(pixels)
                num_pictures += 1
        return Share(
            pictures[:num_pictures],
            [raw.uid for raw in found],
            [raw.caption for raw in found],
            [raw.conversation for raw in found],
            [raw.image is not None for raw in found],
            replaced,
        )

    def _sample(self, place: Place, replaced: list[str]) -> tuple[RawSample, Pixels | None]:
        for attempt in range(MAX_REPLACEMENTS):
            chosen = place if attempt == 0 else self.stream.replacement(place, attempt, self.seed)
            try:
                return self._decode(chosen)
            except SampleError as error:
                replaced.append(f"data set {chosen.dataset}, shard {chosen.shard}, row {chosen.row}: {error}")
        raise InputError(f"{MAX_REPLACEMENTS} broken samples in a row ({replaced[-1]}); check the data set")

    def _decode(self, place: Place) -> tuple[RawSample, Pixels | None]:
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
        return raw, resize(pixels, self.preprocess)


def empty_pictures(num: int, size: int) -> torch.Tensor:
    """Room for pictures; in a worker it is in shared memory from the start, or everything would be copied there."""
    shape = (num, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


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
    steps = DataLoader(
        loader,
        batch_size=None,
        sampler=range(first_step, num_steps),
        num_workers=num_workers,
        prefetch_factor=STEPS_AHEAD if num_workers else None,
        worker_init_fn=_calm_worker if num_workers else None,
    )
    for share in _fetched_ahead(steps) if num_workers else steps:
        if isinstance(share, Failure):
            raise share.error
        for line in share.replaced:
            logger.warning("broken sample replaced: %s", line)
        yield share


def _fetched_ahead(steps: Iterable[Share | Failure]) -> Iterator[Share | Failure]:
    """Take the next share from the workers in a thread: unpacking it takes milliseconds that the model need not wait."""
    ready: queue.Queue[Share | Failure | BaseException | None] = queue.Queue(1)
    stopped = threading.Event()

    def put(value: Share | Failure | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(value, timeout=0.1)
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for share in steps:
                put(share)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001  raised where the share is taken
            put(error)

    thread = threading.Thread(target=fetch, name="shares", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()


def _calm_worker(_: int) -> None:
    """One thread; and signals that reach the whole job are the rank's to answer, which still needs its workers."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
