"""The resize of training: torch's, eight times as fast as Pillow's, with the same numbers but for rounding.

`Preprocess.resize` is Pillow's, as in the image processor that an export carries. Both filter the same way; torch's
kernel has fewer bits after the point. `tests/test_loader.py` holds the difference: at most 2 of 255, and on fewer than
one value in a hundred; of NaFlex on more, where a scale puts many values half-way between two numbers. Scoring and
evaluation take Pillow's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.naflex import Grid, NaflexPreprocess
from pairloom.schemas.images.preprocess import Preprocess

KERNELS: dict[int, Callable[..., Any]] = {
    2: torch.ops.aten._upsample_bilinear2d_aa.out,
    3: torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""By Pillow's number. `F.interpolate` calls them too, but cannot be told where to write: it gives planes, and putting
them together again takes longer than the resize.
"""


def resize_into(out: Pixels, pixels: Pixels, preprocess: Preprocess) -> None:
    """RGB of any size -> `out`, size x size x 3, uint8."""
    height, width = pixels.shape[:2]
    kernel = KERNELS.get(preprocess.resample)
    if kernel is None or (height, width) == (preprocess.size, preprocess.size):
        out[:] = preprocess.resize(pixels)
        return
    columns, rows = preprocess.scaled(height, width)
    whole = out if out.shape[:2] == (rows, columns) else np.empty((rows, columns, 3), np.uint8)
    kernel(_planes(pixels), (rows, columns), False, None, None, out=_planes(whole))
    if whole is not out:
        out[:] = preprocess.crop(whole)


def cut_into(out: Pixels, pixels: Pixels, preprocess: NaflexPreprocess) -> Grid:
    """RGB of any size -> patches in `out` [N, P], uint8; returns their rows and columns."""
    kernel = KERNELS.get(preprocess.resample)
    if kernel is None:
        return preprocess.cut(preprocess.resize(pixels), out)
    height, width = (number * preprocess.patch_size for number in preprocess.grid(*pixels.shape[:2]))
    resized = np.empty((height, width, 3), np.uint8)
    kernel(_planes(pixels), (height, width), False, None, None, out=_planes(resized))
    return preprocess.cut(resized, out)


def _planes(pixels: Pixels) -> torch.Tensor:
    """[1, 3, height, width] over the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
