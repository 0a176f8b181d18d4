"""Inputs of the ingest benchmarks: images, the server that serves them, and the table of URLs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

SIZES = {"640x480": (640, 480), "2MP": (1732, 1155), "tiny": (32, 32)}  # px
NUM_IMAGES = 40  # distinct images; every row has its own URL


def make_image(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coloured noise with the spectrum of photographs."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    fall = 1 / np.maximum(frequency, 1 / max(size)) ** 1.15
    channels = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) * fall, (height, width)) for _ in "rgb"]
    mixed = np.stack([channels[0] + 0.3 * one for one in channels], axis=-1)
    return Image.fromarray(np.clip(128 + 48 * (mixed - mixed.mean()) / mixed.std(), 0, 255).astype(np.uint8))


def write_images(folder: Path, data: Path | None, names: Sequence[str]) -> None:
    """One folder of JPEGs per size."""
    random = np.random.default_rng(0)
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")) if data else []
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(NUM_IMAGES):
            if found:
                image = ImageOps.fit(Image.open(found[index % len(found)]).convert("RGB"), SIZES[name])
                noise = random.normal(0, 6, (SIZES[name][1], SIZES[name][0], 1))  # enlarging makes them too smooth
                image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
            else:
                image = make_image(random, SIZES[name])
            image.save(folder / name / f"{index:04d}.jpg", quality=90)


@contextmanager
def serve(folder: Path, slow_share: float = 0.0, slow_s: float = 0.0) -> Iterator[tuple[str, psutil.Process]]:
    """The loopback server in its own process; it sends a share of its answers only after some seconds."""
    command = [sys.executable, "-m", "benchmarks.image_server", str(folder), str(slow_share), str(slow_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.kill()


def write_urls(path: Path, base: str, rows: int) -> None:
    """A table of URLs, all different."""
    urls = [f"{base}/{index}.jpg" for index in range(rows)]
    captions = [f"image number {index}" for index in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
