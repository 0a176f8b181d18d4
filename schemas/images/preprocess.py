"""Pixels -> model input, for training, scoring, evaluation and export.

Images are resized with Pillow, so that the result equals that of the Hugging Face image processor in an export (its
`...Pil` classes), and a model is scored on the pixels that it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.storage import storage

RESAMPLE_BILINEAR, RESAMPLE_BICUBIC = 2, 3  # Pillow's numbers, as preprocessor_config.json stores them


@dataclass(frozen=True)
class Preprocess:
    """How pixels become model input: `squash` ignores the aspect ratio (SigLIP), `center_crop` keeps it (CLIP)."""

    size: int  # px; side of the model's square input
    mode: Literal["squash", "center_crop"] = "squash"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: int = RESAMPLE_BICUBIC

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output buffer of one image: [size, size, 3]."""
        return self.size, self.size, 3

    def resize(self, pixels: Pixels) -> Pixels:
        """RGB of any size -> size x size x 3, uint8."""
        height, width = pixels.shape[:2]
        if (height, width) == (self.size, self.size):
            return pixels
        image = Image.fromarray(pixels)
        return self.crop(np.asarray(image.resize(self.scaled(height, width), Image.Resampling(self.resample))))

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Width and height in px after resizing, before cropping."""
        if self.mode == "squash":
            return self.size, self.size
        scaled = int(self.size * max(height, width) / min(height, width))
        return (self.size, scaled) if width <= height else (scaled, self.size)

    def crop(self, resized: Pixels) -> Pixels:
        """The middle square of a resized image."""
        top, left = (resized.shape[0] - self.size) // 2, (resized.shape[1] - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]

    def normalise(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [B, size, size, 3] -> float32 [B, 3, size, size]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (batch.astype(np.float32) * np.float32(1 / 255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def model_inputs(self, images: Sequence[Pixels]) -> dict[str, npt.NDArray[Any]]:
        """Resized images -> `pixel_values` [B, 3, size, size] float32."""
        return {"pixel_values": self.normalise(np.stack(images))}

    def processor_config(self, processor_class: str) -> dict[str, Any]:
        """The `preprocessor_config.json` of the equivalent Hugging Face image processor."""
        square = {"height": self.size, "width": self.size}
        config: dict[str, Any] = {
            "image_processor_type": processor_class,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": square if self.mode == "squash" else {"shortest_edge": self.size},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.mode == "center_crop":
            config |= {"do_center_crop": True, "crop_size": square}
        return config


def load_preprocess(folder: str) -> Preprocess:
    """Read a Hugging Face folder's `preprocessor_config.json` (or processor_config.json). Raises InputError."""
    config = read_processor_config(folder)
    size = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    if not isinstance(side, int):
        raise InputError(f"{folder}: image processor without a fixed size; use a model with one input size")
    mean, std = config.get("image_mean") or [0.5] * 3, config.get("image_std") or [0.5] * 3
    return Preprocess(
        size=side,
        mode="center_crop" if config.get("do_center_crop") else "squash",
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=config.get("resample", RESAMPLE_BICUBIC),
    )


def read_processor_config(folder: str) -> dict[str, Any]:
    """A Hugging Face folder's `preprocessor_config.json` (or its part of processor_config.json). Raises InputError."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        url = storage.join(folder, name)
        if storage.exists(url):
            config: dict[str, Any] = json.loads(storage.read_text(url))
            return config[key] if key and key in config else config
    raise InputError(f"{folder}: no preprocessor_config.json; save the model's image processor there")
