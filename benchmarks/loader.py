"""Speed of the training loader beside webdataset with Pillow, on the same tars in the same run.

    python -m benchmarks.loader [--images DIR] [--num 1000] [--side 256]

CPU time of one process, best of several rounds that alternate between the peers, so that other work on the machine
changes the ratios little. Images come from a folder of JPEGs (or are synthetic), stored with the shorter side `--side`
as ingest stores them (0: as they are), and are trained on at 224 px. `webdataset` is used as its documentation shows:
`.decode("pil")`, then resize, float32, normalise. Our loader gives uint8, which is normalised on the device of the
model; both numbers are printed.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image

from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.trainers.data.dataset import open_pairs
from pairloom.trainers.data.loader import Loader, shares
from pairloom.trainers.data.raw_sample import Dataset
from pairloom.trainers.data.sample_order import Order, Stream
from pairloom.trainers.data.wait_time import measure_wait
from tests.support.curated_builder import build_curated

SIZE, BATCH, LANES, ROUNDS, PER_SHARD = 224, 64, 8, 5, 500


def main() -> None:
    """Print one table of times and one of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs; without it images are synthetic")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256, help="shorter side as stored; 0: as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = [stored(image, options.side) for image in find_images(options.images, options.num)]
        data = build_curated(folder, [(image, f"image {n}") for n, image in enumerate(images)], PER_SHARD)
        print(f"{len(images)} JPEGs of {np.mean([len(image) for image in images]) / 1e3:.0f} KB, to {SIZE} px")
        compare(images, data, sorted(map(str, Path(data).rglob("*.tar"))))


def find_images(folder: Path | None, num: int) -> list[bytes]:
    """JPEG files, or drawn ones of 640 x 480 with the noise of a photograph."""
    if folder is not None:
        paths = itertools.islice((path for path in sorted(folder.rglob("*.jp*g"))), num)
        return [path.read_bytes() for path in paths]
    return [drawn(seed) for seed in range(num)]


def drawn(seed: int) -> bytes:
    """An image of soft blobs and noise: about 200 KB, most of its decoding is Huffman codes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (30, 40, 3), np.uint8)
    smooth = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    noisy = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(noisy, 90))


def stored(image: bytes, side: int) -> bytes:
    """As ingest stores it: the shorter side `side` px, quality 95."""
    pixels = decode_rgb(image)
    short = min(pixels.shape[:2])
    if side == 0 or short <= side:
        return image
    height, width = (round(length * side / short) for length in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(small), 95))


def compare(images: list[bytes], data: str, tars: list[str]) -> None:
    """Alternate between everything that is measured; print CPU ms per image, and ratios."""
    preprocess, num = Preprocess(SIZE), len(images)
    num_steps = num // BATCH
    dataset = open_pairs(DataSource(path=data))
    stream = Stream([Order(dataset.shard_sizes, 0, 0)], [1.0], LANES, BATCH)
    loader = Loader([dataset], stream, preprocess, AugmentRecipe(), 0, 0, 1)
    taken = num_steps * BATCH
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))

    out = torch.empty((1, 3, SIZE, SIZE), dtype=torch.uint8, memory_format=torch.channels_last)

    def normalised(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2).contiguous().float().mul_(1 / 255).sub_(mean).div_(std)

    work: dict[str, tuple[Callable[[], object], int]] = {
        "bare decode + resize": (lambda: for_each(bare, images, out), num),
        "pairloom, uint8": (lambda: [loader[step] for step in range(num_steps)], taken),
        "pairloom, float32": (lambda: [normalised(loader.share(step).pixels) for step in range(num_steps)], taken),
        "webdataset + Pillow": (lambda: exhaust(webdataset_pillow(tars, preprocess)), num),
        "rows, pairloom": (lambda: read_rows(dataset, num), num),
        "rows, webdataset": (lambda: exhaust(plain(tars)), num),
    }
    large = [image for image in images if min(simplejpeg.decode_jpeg_header(image)[:2]) >= 2 * SIZE]
    if large:
        work["bare, decoded at half"] = (lambda: for_each(halved, large, out), len(large))
        compare_halved(large, out)
    best = {name: float("inf") for name in work}
    for _ in range(ROUNDS):
        for name, (call, count) in work.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], (time.process_time() - start) / count)
    for name, seconds in best.items():
        print(f"{name:24} {seconds * 1e3:8.3f} ms  {1 / seconds:9.0f} images/s per core")
    print(f"pairloom / webdataset + Pillow: {best['webdataset + Pillow'] / best['pairloom, uint8']:.2f} (uint8), "
          f"{best['webdataset + Pillow'] / best['pairloom, float32']:.2f} (float32)")  # fmt: skip
    print(f"pairloom / bare decode + resize: {best['bare decode + resize'] / best['pairloom, uint8']:.2f}")
    print(f"rows: {best['rows, webdataset'] / best['rows, pairloom']:.1f} times webdataset")
    print(f"data wait of a model that takes 1.5 times as long as one worker: {waited(loader):.1%}")


def for_each(work: Callable[[bytes, torch.Tensor], None], images: Iterable[bytes], out: torch.Tensor) -> None:
    """Call `work` on every image, with one output tensor."""
    for image in images:
        work(image, out)


def bare(image: bytes, out: torch.Tensor) -> None:
    """The two libraries that do the work, and nothing else."""
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(image, colorspace="RGB", strict=True)).permute(2, 0, 1)[None]
    torch.ops.aten._upsample_bicubic2d_aa.out(pixels, (SIZE, SIZE), False, None, None, out=out)


def halved(image: bytes, out: torch.Tensor) -> None:
    """The same with the JPEG decoded at half its size, which skips most of the inverse transforms."""
    height, width = (-(-side // 2) for side in simplejpeg.decode_jpeg_header(image)[:2])
    small = simplejpeg.decode_jpeg(image, "RGB", False, False, height, width, 2)
    torch.ops.aten._upsample_bicubic2d_aa.out(
        torch.from_numpy(small).permute(2, 0, 1)[None], (SIZE, SIZE), False, None, None, out=out
    )


def compare_halved(images: list[bytes], out: torch.Tensor) -> None:
    """Print what a decode at half the size changes: levels of 255."""
    differences = []
    for image in images:
        bare(image, out)
        whole = out.int()
        halved(image, out)
        differences.append((out.int() - whole).abs().float())
    mean, most = (np.mean([float(d.mean()) for d in differences]), max(float(d.max()) for d in differences))
    print(f"decoded at half the size: pixels differ by {mean:.2f} levels of 255 in the mean, {most:.0f} at most")


def webdataset_pillow(tars: list[str], preprocess: Preprocess) -> Iterable[object]:
    """webdataset's loader in one process."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))

    def prepare(image: Image.Image) -> torch.Tensor:
        resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()  # as torchvision's ToTensor
        return pixels.float().div_(255).sub_(mean).div_(std)

    return plain(tars).decode("pil").to_tuple("jpg", "txt").map_tuple(prepare, lambda text: text).batched(BATCH)


def plain(tars: list[str]) -> webdataset.WebDataset:
    """Samples as they lie in the tars, undecoded."""
    return webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)


def exhaust(samples: Iterable[object]) -> None:
    """Take everything."""
    for _ in samples:
        pass


def read_rows(dataset: Dataset, num: int) -> None:
    """Every sample's bytes and caption in a shuffled order."""
    order = np.random.default_rng(0).permutation(num)
    for shard, row in zip((order // PER_SHARD).tolist(), (order % PER_SHARD).tolist(), strict=True):
        dataset.read(shard, row)


def waited(loader: Loader) -> float:
    """Share of its time that a model waits for data if its step takes 1.5 times as long as a batch of one worker."""
    num_steps, first = 40, 8
    start = time.monotonic()
    exhaust(shares(loader, 0, num_steps, num_workers=1))
    seconds_per_step = (time.monotonic() - start) / num_steps
    fractions = []
    for share in measure_wait(shares(loader, 0, num_steps, num_workers=1)):
        fractions.append(share.wait_fraction)
        time.sleep(1.5 * seconds_per_step)
    return float(np.mean(fractions[first:]))


if __name__ == "__main__":
    main()
