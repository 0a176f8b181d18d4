"""NaFlex (SigLIP 2, arXiv 2502.14786): images with their aspect ratio, as a variable number of patches.

The result equals transformers' `Siglip2ImageProcessorPil`, which an export contains.
Legend: B images of a batch, N largest number of patches, P bytes of a patch (patch_size x patch_size x 3).
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

# The bounds and precision of the reference's bisection; other values give other sizes.
SMALLEST_SCALE, LARGEST_SCALE, SCALE_STEP = 1e-6, 100.0, 1e-5

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class NaflexPreprocess:
    """How pixels become at most `num_patches` patches, padded with zeros."""

    num_patches: int  # N
    patch_size: int = 16  # px
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: int = RESAMPLE_BILINEAR

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output buffer of one image: [N, P]."""
        return self.num_patches, self.patch_size**2 * 3

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns at the largest scale s with ceil(height s / p) * ceil(width s / p) <= N; at least 1 x 1."""
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

    def cut(self, resized: Pixels, out: npt.NDArray[np.uint8]) -> Grid:
        """Write the patches of a resized image to `out` [N, P], row by row, padded with zeros."""
        side = self.patch_size
        rows, columns = resized.shape[0] // side, resized.shape[1] // side
        patches = resized.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        out[: rows * columns].reshape(patches.shape)[:] = patches
        out[rows * columns :] = 0
        return rows, columns

    def model_inputs(self, images: Sequence[Pixels]) -> dict[str, npt.NDArray[Any]]:
        """Resized images -> `pixel_values` [B, N, P] float32, `pixel_attention_mask` [B, N], `spatial_shapes`
        [B, 2].
        """
        patches = np.empty((len(images), *self.out_shape), np.uint8)
        shapes = np.array([self.cut(image, out) for image, out in zip(images, patches, strict=True)], np.int64)
        mask = (np.arange(self.num_patches) < shapes.prod(axis=1)[:, None]).astype(np.int32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        colours = patches.reshape(len(images), self.num_patches, -1, 3).astype(np.float32)
        values = ((colours * np.float32(1 / 255) - mean) / std).reshape(patches.shape)
        return {
            "pixel_values": values * mask[..., None].astype(np.float32),
            "pixel_attention_mask": mask,
            "spatial_shapes": shapes,
        }

    def processor_config(self) -> dict[str, Any]:
        """The `preprocessor_config.json` of the equivalent transformers processor."""
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
    """Read the image processor of a Hugging Face folder, for squares or NaFlex. Raises InputError."""
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
