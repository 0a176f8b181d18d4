"""Hashes of an image: exact hash, 64-bit and 256-bit perceptual hashes, and a small colour thumbnail.

The perceptual hash is `schemas.data_set.tables.PHASH_ALGORITHM`: grey, 32 x 32, DCT, top-left 8 x 8, above the median
of all 64. The cosine transform uses integers, so that the order of a sum (BLAS, threads) cannot flip a bit.

The pixels may come from a JPEG decoded at 1/2 to 1/8 of its size, or be the stored ones (`store_image`):
`tests/pipelines/images/test_image_rules.py` checks that the hash then differs by at most 2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import xxhash

from pairloom.pipelines.images.area_resize import shrink
from pairloom.schemas.images.columns import THUMBNAIL_SIDE
from pairloom.schemas.images.decode import Pixels

SIDE = 32  # px; side of the transformed grey image
LOW = 8  # lowest frequencies kept per axis
SIDE_256, LOW_256 = 64, 16  # for the 256-bit hash
DCT_SCALE = 1 << 14  # cosines as integers; 64 * 255 * 2^14 squared stays far below 2^63

Integers = npt.NDArray[np.int64]


def _cosines(low: int, side: int) -> Integers:
    """The first rows of the DCT-II of `side` points, rounded to integers: [low, side]."""
    frequency = np.arange(low)[:, None]
    position = np.arange(side)[None, :]
    exact = np.cos(np.pi * frequency * (2 * position + 1) / (2 * side)) * DCT_SCALE
    cosines: Integers = np.rint(exact).astype(np.int64)
    return cosines


COSINES = _cosines(LOW, SIDE)
COSINES_256 = _cosines(LOW_256, SIDE_256)


@dataclass(frozen=True)
class PixelHashes:
    """Hashes for near-duplicates: `phash` gives candidate pairs, `thumbnail` confirms them."""

    phash: int  # 64 bits, row by row, the lowest frequency in the highest bit
    thumbnail: bytes  # THUMBNAIL_SIDE x THUMBNAIL_SIDE RGB, row by row


def exact_hash(pixels: Pixels, size: tuple[int, int]) -> str:
    """XXH3-128 of `size` (height, width in px before any reduction) and of the RGB pixels, as 32 hex digits.

    It costs 1% of a decode; sha256 costs 14%. XXH3 does not prevent forged hashes, but a forged hash drops only the
    forger's own image.
    """
    digest = xxhash.xxh3_128(np.array(size, "<u4").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def hash_pixels(pixels: Pixels, covered: tuple[float, float] | None = None) -> PixelHashes:
    """Perceptual hash and thumbnail of an RGB image, from one reduction of its pixels.

    `covered`: height and width in px that a reduced decode covers, if less than the array (`area_resize`).
    """
    small: Any = shrink(pixels, covered or pixels.shape[:2], (SIDE, SIDE))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(small, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return PixelHashes(int.from_bytes(bits_of_grey(grey, COSINES), "big"), thumbnail.tobytes())


def phash256(pixels: Pixels) -> bytes:
    """256-bit perceptual hash of an RGB image, as imagehash's `phash` with hash_size=16; 32 bytes."""
    small: Any = shrink(pixels, pixels.shape[:2], (SIDE_256, SIDE_256))
    return bits_of_grey(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), COSINES_256)


def bits_of_grey(grey: npt.NDArray[Any], cosines: Integers) -> bytes:
    """One bit per low frequency of a grey image [side, side]: whether it is above the median of all of them."""
    frequencies = (cosines @ grey.astype(np.int64) @ cosines.T).ravel()
    ordered = np.sort(frequencies)
    twice_median = ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]
    return np.packbits(2 * frequencies > twice_median).tobytes()
