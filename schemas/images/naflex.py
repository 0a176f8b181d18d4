"""NaFlex (SigLIP 2, arXiv 2502.14786): pictures that keep their aspect ratio, as a row of patches of any number.

The numbers are those of transformers' `Siglip2ImageProcessorPil`, which an export carries.
Legend: N patches that a picture may have, n it has, P bytes of a patch (patch_size x patch_size x 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.preprocess import RESAMPLE_BILINEAR, Preprocess, load_preprocess, read_processor_config

# The rule's own precision: a picture's size is where the bisection of the reference ends, not where it would end.
SMALLEST_SCALE, LARGEST_SCALE, SCALE_STEP = 1e-6, 100.0, 1e-5

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class NaflexPreprocess:
    """How pixels become at most `num_patches` patches, filled up with zeros."""

    num_patches: int  # N
    patch_size: int = 16  # px
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: int = RESAMPLE_BILINEAR

    @property
    def room(self) -> tuple[int, ...]:
        """Shape of a picture's memory: [N, P]."""
        return self.num_patches, self.patch_size**2 * 3

    def grid(self, height: int, width: int) -> Grid:
        """The most patches at one scale for both sides: ceil(height s / p) * ceil(width s / p) <= N, one at least."""
        smallest, largest = SMALLEST_SCALE, LARGEST_SCALE
        while largest - smallest >= SCALE_STEP:
            scale = (smallest + largest) / 2
            rows, columns = self._grid_at(scale, height, width)
            smallest, largest = (scale, largest) if rows * columns <= self.num_patches else (smallest, scale)
        return self._grid_at(smallest, height, width)

    def _grid_at(self, scale: float, height: int, width: int) -> Grid:
        rows, columns = (max(1, math.ceil(side * scale / self.patch_size)) for side in (height, width))
        return rows, columns

    def resize(self, pixels: Pixels) -> Pixels:
        """RGB of any size -> sides that are multiples of the patch, uint8."""
        rows, columns = self.grid(*pixels.shape[:2])
        size = (columns * self.patch_size, rows * self.patch_size)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling(self.resample)))

    def cut(self, resized: Pixels, room: npt.NDArray[np.uint8]) -> Grid:
        """Write the patches of a resized picture to `room` [N, P], row by row, and zeros behind them."""
        side = self.patch_size
        rows, columns = resized.shape[0] // side, resized.shape[1] // side
        patches = resized.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        room[: rows * columns].reshape(patches.shape)[:] = patches
        room[rows * columns :] = 0
        return rows, columns

    def model_inputs(self, pictures: Sequence[Pixels]) -> dict[str, npt.NDArray[Any]]:
        """Resized pictures -> `pixel_values` [B, N, P] float32, `pixel_attention_mask` [B, N], `spatial_shapes`
        [B, 2].
        """
        patches = np.empty((len(pictures), *self.room), np.uint8)
        shapes = np.array([self.cut(picture, room) for picture, room in zip(pictures, patches, strict=True)], np.int64)
        mask = (np.arange(self.num_patches) < shapes.prod(axis=1)[:, None]).astype(np.int32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        colours = patches.reshape(len(pictures), self.num_patches, -1, 3).astype(np.float32)
        values = ((colours * np.float32(1 / 255) - mean) / std).reshape(patches.shape)
        return {
            "pixel_values": values * mask[..., None].astype(np.float32),
            "pixel_attention_mask": mask,
            "spatial_shapes": shapes,
        }

    def processor_config(self) -> dict[str, Any]:
        """The `preprocessor_config.json` of transformers' processor that does the same."""
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            "processor_class": "Siglip2Processor",
            "do_convert_rgb": True,
            "do_resize": True,
            "patch_size": self.patch_size,
            "max_num_patches": self.num_patches,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


AnyPreprocess = Preprocess | NaflexPreprocess


def load_any_preprocess(folder: str) -> AnyPreprocess:
    """Read a Hugging Face folder's image processor, of squares or of NaFlex. Raises InputError."""
    config = read_processor_config(folder)
    if "max_num_patches" not in config:
        return load_preprocess(folder)
    mean, std = config.get("image_mean") or [0.5] * 3, config.get("image_std") or [0.5] * 3
    return NaflexPreprocess(
        num_patches=config["max_num_patches"],
        patch_size=config.get("patch_size", 16),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=config.get("resample", RESAMPLE_BILINEAR),
    )
