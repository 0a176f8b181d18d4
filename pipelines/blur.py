"""Blur boxes of an image, such as DataComp's `face_bboxes`.

The numbers are img2dataset's blurrer's, which took them from ImageNet's face obfuscation: each box grows by a tenth of
its longer side, a Gaussian of a tenth of the longest side blurs the image and the mask, and the mask blends them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from schemas.drop_reason import DropReason
from schemas.errors import SampleError
from schemas.image_decode import Pixels

Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
Boxes = Sequence[Box]  # fractions of width and height, unless they are PixelBoxes
MARGIN = 0.1  # of a box's longer side
SIGMA = 0.1  # of the longest side of all boxes
MAX_PIXELS = 1 << 20  # farther from the corner no image reaches
MAX_BOXES = 1000  # of one image


class PixelBoxes(tuple[Box, ...]):
    """Boxes in pixels of the upright image as it was received."""


def read_boxes(value: object, unit: Literal["fractions", "pixels"] = "fractions") -> Boxes:
    """Boxes of a cell that has been parsed; none for null. Raises SampleError: what cannot be read is not shown."""
    if value is None:
        return ()
    try:
        boxes = [tuple(float(number) for number in box) for box in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise SampleError(DropReason.INVALID_BOXES, f"no list of boxes: {str(value)[:200]}") from None
    if len(boxes) > MAX_BOXES:
        raise SampleError(DropReason.INVALID_BOXES, f"{len(boxes)} boxes, more than {MAX_BOXES}")
    low, high = (-1, 2) if unit == "fractions" else (-MAX_PIXELS, MAX_PIXELS)
    for box in boxes:
        if len(box) != 4 or not all(math.isfinite(number) and low <= number <= high for number in box):
            raise SampleError(DropReason.INVALID_BOXES, f"no box of four {unit}: {box}")
    read = [(box[0], box[1], box[2], box[3]) for box in boxes]
    return read if unit == "fractions" else PixelBoxes(read)


def as_fractions(boxes: Boxes, width: int, height: int) -> Boxes:
    """Boxes of an image of so many pixels as fractions of its sides. Raises SampleError where they are far outside."""
    if not isinstance(boxes, PixelBoxes):
        return boxes
    return read_boxes(
        [(left / width, top / height, right / width, bottom / height) for left, top, right, bottom in boxes]
    )


def blur_boxes(pixels: Pixels, boxes: Boxes) -> Pixels:
    """A copy with the boxes blurred; the very same array where there are none."""
    if not boxes:
        return pixels
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.float32)
    longest = 0
    for x_min, y_min, x_max, y_max in boxes:
        left, top, right, bottom = int(x_min * width), int(y_min * height), int(x_max * width), int(y_max * height)
        side = max(right - left, bottom - top)
        longest = max(longest, side)
        margin = MARGIN * side
        left, right = (min(max(int(edge), 0), width - 1) for edge in (left - margin, right + margin))
        top, bottom = (min(max(int(edge), 0), height - 1) for edge in (top - margin, bottom + margin))
        mask[top:bottom, left:right] = 1
    if longest <= 0:
        return pixels.copy()
    sigma = SIGMA * longest
    image = pixels.astype(np.float32) / 255
    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    share = cv2.GaussianBlur(mask, (0, 0), sigma)[:, :, None]
    result: Pixels = (np.clip(image * (1 - share) + blurred * share, 0, 1) * 255).astype(np.uint8)
    return result
