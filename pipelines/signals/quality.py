"""quality: sharpness, entropy and flatness of every stored image, without a model.

All three are measured on the grey image with a longer side of at most 256 px, so that they are comparable for large
and small images. None of them alone means bad quality: drawings are flat and fog is not sharp.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import pyarrow as pa

from pairloom.pipelines.signals.row_signals import ImageSignal
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.recipes.signals import Name

VERSION = 1
SIDE = 256  # px; limit of the longer side
BLOCK = 8  # px
FLAT_RANGE = 8  # grey levels; a block with a smaller range is flat (JPEG noise is smaller)
QUALITY_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("sharpness", pa.float32()),  # variance of the Laplacian of grey levels 0..255
        pa.field("entropy", pa.float32()),  # entropy of the grey levels, bits, 0..8
        pa.field("flatness", pa.float32()),  # share of 8 x 8 blocks with nearly one grey level, 0..1
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


class QualitySignals(ImageSignal):
    """sharpness, entropy, flatness of the stored image."""

    kind: Literal["quality"]
    name: Name = "quality"

    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("sharpness", "entropy", "flatness")
    arrow_schema: ClassVar[pa.Schema] = QUALITY_SIGNALS

    def measure_image(self, pixels: Pixels) -> tuple[float, float, float]:
        """sharpness, entropy, flatness."""
        return measure_image(pixels)
