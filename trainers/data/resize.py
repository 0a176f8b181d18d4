"""The resize of training: torch's, which is five times as fast as Pillow's and gives the same numbers but for rounding.

`Preprocess.resize` is Pillow's, as in the image processor that an export carries. Both filter the same way; torch's
kernel has fewer bits after the point. `tests/test_loader.py` holds the difference: at most 2 of 255, and on fewer than
one value in a hundred. Scoring and evaluation take Pillow's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from schemas.image_decode import Pixels
from schemas.preprocess import Preprocess

MODES = {2: "bilinear", 3: "bicubic"}  # by Pillow's number


def resize(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """RGB of any size -> size x size x 3, uint8."""
    height, width = pixels.shape[:2]
    mode = MODES.get(preprocess.resample)
    if mode is None or (height, width) == (preprocess.size, preprocess.size):
        return preprocess.resize(pixels)
    columns, rows = preprocess.scaled(height, width)
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # as channels_last: its kernel takes whole pixels
    resized: Pixels = F.interpolate(picture, (rows, columns), mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
    return preprocess.crop(resized)
