"""Blur boxes of an image, such as DataComp's `face_bboxes`.

The method is that of img2dataset's blurrer and of ImageNet's face obfuscation (Yang et al. 2022): each box grows by a
tenth of its longer side, a Gaussian with sigma of a tenth of the longest side blurs image and mask, the mask blends.
"""

from __future__ import annotations

import cv2
import numpy as np

from pairloom.pipelines.images.boxes import Boxes
from pairloom.schemas.images.decode import Pixels

MARGIN = 0.1  # share of a box's longer side
SIGMA = 0.1  # share of the longest side of all boxes


def blur_boxes(pixels: Pixels, boxes: Boxes) -> Pixels:
    """A copy with blurred boxes (fractions); without boxes, `pixels` itself."""
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
