"""brightness: the mean grey level of every stored image, 0 (black) to 1 (white), and the share of clipped pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from pairloom.plugins import ImageSignal, Name


class Brightness(ImageSignal):
    """brightness, clipped."""

    kind: Literal["brightness"]
    name: Name = "brightness"
    clipped_above: int = 250
    """Grey level, 0 to 255: pixels above it count as clipped."""

    version: ClassVar[int] = 1  # raise it when the same image gives other values
    score_columns: ClassVar[tuple[str, ...]] = ("brightness", "clipped")  # score rules may use these
    arrow_schema: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("uid", pa.string(), nullable=False),
            pa.field("brightness", pa.float32()),
            pa.field("clipped", pa.float32()),
        ]
    )

    def measure_image(self, pixels: np.ndarray) -> tuple[float, float]:
        """The values of one RGB image, uint8 [height, width, 3]."""
        grey = pixels.mean(axis=2)
        return float(grey.mean() / 255), float((grey > self.clipped_above).mean())
