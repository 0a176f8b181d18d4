"""Boxes of an image to be blurred, read from a source and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError

Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
Boxes = Sequence[Box]  # fractions of width and height, unless they are PixelBoxes
MAX_PIXELS = 1 << 20  # no image is larger
MAX_BOXES = 1000  # per image


class PixelBoxes(tuple[Box, ...]):
    """Boxes in pixels of the upright image as received."""


def read_boxes(value: object, unit: Literal["fractions", "pixels"] = "fractions") -> Boxes:
    """Boxes of a parsed cell; null means no boxes. Raises SampleError if they cannot be read."""
    if value is None:
        return ()
    try:
        boxes = [tuple(float(number) for number in box) for box in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise SampleError(DropReason.INVALID_BOXES, f"not a list of boxes: {str(value)[:200]}") from None
    if len(boxes) > MAX_BOXES:
        raise SampleError(DropReason.INVALID_BOXES, f"{len(boxes)} boxes, more than {MAX_BOXES}")
    low, high = (-1, 2) if unit == "fractions" else (-MAX_PIXELS, MAX_PIXELS)
    for box in boxes:
        if len(box) != 4 or not all(math.isfinite(number) and low <= number <= high for number in box):
            raise SampleError(DropReason.INVALID_BOXES, f"not a box of four {unit}: {box}")
    read = [(box[0], box[1], box[2], box[3]) for box in boxes]
    return read if unit == "fractions" else PixelBoxes(read)


def as_fractions(boxes: Boxes, width: int, height: int) -> Boxes:
    """Boxes as fractions of an image of `width` x `height` px. Raises SampleError if they are far outside."""
    if not isinstance(boxes, PixelBoxes):
        return boxes
    return read_boxes(
        [(left / width, top / height, right / width, bottom / height) for left, top, right, bottom in boxes]
    )
