"""Image quality, without any model: sharpness, entropy and flatness of every stored image.

All three are measured on the grey image with its longer side brought to 256 px, so that they say the same of large and
small pictures. None of them is a verdict: drawings are flat and fog is not sharp.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.signals.models.actors import open_tar
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import Pixels, decode_rgb

VERSION = 1
SIDE = 256  # px, of the longer side
BLOCK = 8  # px
FLAT_RANGE = 8  # grey levels: a block whose levels differ less is flat (noise of a JPEG stays below)
QUALITY_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("sharpness", pa.float32()),  # variance of the Laplacian, of grey levels 0..255
        pa.field("entropy", pa.float32()),  # of the grey levels, bits, 0..8
        pa.field("flatness", pa.float32()),  # share of 8 x 8 blocks of (nearly) one grey level, 0..1
    ]
)


def measure_image(pixels: Pixels) -> tuple[float, float, float]:
    """sharpness, entropy, flatness of an RGB image."""
    grey = _grey(pixels)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    present = shares[shares > 0]
    entropy = abs(float(-(present * np.log2(present)).sum()))
    return sharpness, entropy, _flatness(grey)


def _grey(pixels: Pixels) -> Any:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = SIDE / max(height, width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _flatness(grey: Any) -> float:
    """Share of flat blocks; an image smaller than one block is one block."""
    height, width = (side // BLOCK * BLOCK for side in grey.shape)
    if not height or not width:
        return float(int(grey.max()) - int(grey.min()) < FLAT_RANGE)
    blocks = grey[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    ranges = blocks.max(axis=(1, 3)).astype(np.int16) - blocks.min(axis=(1, 3))
    return float((ranges < FLAT_RANGE).mean())


def measure_shard(raw_folder: str, folder: str, shard: ShardEntry) -> None:
    """Write the quality signals of one raw shard; rows without an image that can be decoded are null."""
    raw = read_table(table_url(raw_folder, shard.name), ["uid", "status", "offset", "num_bytes"])
    values: list[tuple[float | None, ...]] = []
    with open_tar(raw_folder, shard, raw) as reader:
        for row in raw.to_pylist():
            measured: tuple[float | None, ...] = (None, None, None)
            if reader is not None and row["status"] == STATUS_SUCCESS:
                with suppress(SampleError):  # left without values, which no rule lets pass
                    measured = measure_image(decode_rgb(reader.read(row["offset"], row["num_bytes"])))
            values.append(measured)
    arrays = [pa.array([measured[place] for measured in values], pa.float32()) for place in range(3)]
    write_table(table_url(folder, shard.name), pa.table([raw["uid"], *arrays], schema=QUALITY_SIGNALS))


def measure_quality(name: str, raw_folder: str, folder: str, shards: list[ShardEntry], num_done: int) -> None:
    """Measure the images of the given raw shards, one Ray task a shard."""
    run_shards(f"signals {name}", partial(measure_shard, raw_folder, folder), shards, num_done)
