"""One received image -> what is stored: checked on its header, decoded, hashed, resized, encoded.

Resize modes and their numbers are img2dataset's (`resizer.py` of 1.47): area interpolation down, Lanczos up,
sides rounded half to even, white border.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from pipelines.hashes import hash_pixels, sha256_hex
from schemas.curate_recipe import ImageRecipe
from schemas.drop_reason import DropReason
from schemas.errors import SampleError
from schemas.image_decode import EXTENSIONS, ImageHeader, Pixels, decode_rgb, read_header

KEPT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")  # what every WebDataset reader opens
MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
MAX_SIDES = {"jpg": 65500, "png": 1_000_000, "webp": 16383}  # px; what the encoders take

cv2.setNumThreads(1)  # parallel over images, never inside one


@dataclass(frozen=True)
class StoredImage:
    """An image as it goes into the tar, with what the tables say about it."""

    data: bytes
    mime_type: str
    width: int  # px, as stored
    height: int
    original_width: int  # px, as received
    original_height: int
    sha256: str  # of the bytes as received
    image_sha256: str  # of the bytes as stored
    phash: int
    thumbnail: bytes

    @property
    def extension(self) -> str:
        """Extension of the member in the tar."""
        return EXTENSIONS[self.mime_type]


def check_limits(header: ImageHeader, recipe: ImageRecipe) -> None:
    """Raise SampleError where the header breaks `max_pixels`, `min_side` or `max_aspect_ratio`; decodes nothing."""
    width, height = header.width, header.height
    if width * height > recipe.max_pixels:
        raise SampleError(DropReason.TOO_MANY_PIXELS, f"{width} x {height} px, more than {recipe.max_pixels}")
    if min(width, height) < max(recipe.min_side, 1):
        raise SampleError(DropReason.TOO_SMALL, f"{width} x {height} px, shorter side under {recipe.min_side}")
    ratio = max(width, height) / min(width, height)
    if recipe.max_aspect_ratio is not None and ratio > recipe.max_aspect_ratio:
        raise SampleError(DropReason.ASPECT_RATIO, f"{width} x {height} px, aspect ratio {ratio:.2f}")


def store_image(data: bytes, recipe: ImageRecipe) -> StoredImage:
    """Check, decode, hash, resize and encode one image. Raises SampleError with the reason of the drop."""
    header = read_header(data)
    check_limits(header, recipe)
    pixels = decode_rgb(data, header)
    original_height, original_width = pixels.shape[:2]
    hashes = hash_pixels(pixels)
    sha256 = sha256_hex(data)
    resized = resize(pixels, recipe)
    stored, mime_type, image_sha256 = data, header.mime_type, sha256
    if resized is not pixels or not _is_kept_as_received(header):
        stored, mime_type = encode(resized, recipe), MIME_TYPES[recipe.format]
        image_sha256 = sha256_hex(stored)
    return StoredImage(
        data=stored,
        mime_type=mime_type,
        width=resized.shape[1],
        height=resized.shape[0],
        original_width=original_width,
        original_height=original_height,
        sha256=sha256,
        image_sha256=image_sha256,
        phash=hashes.phash,
        thumbnail=hashes.thumbnail,
    )


def inspect_image(data: bytes, recipe: ImageRecipe) -> StoredImage:
    """Like `store_image` for an image that stays where it is: its bytes are neither resized nor encoded."""
    header = read_header(data)
    check_limits(header, recipe)
    pixels = decode_rgb(data, header)
    height, width = pixels.shape[:2]
    hashes = hash_pixels(pixels)
    sha256 = sha256_hex(data)
    return StoredImage(
        data, header.mime_type, width, height, width, height, sha256, sha256, hashes.phash, hashes.thumbnail
    )


def _is_kept_as_received(header: ImageHeader) -> bool:
    """Upright and of a type that every reader opens; many readers ignore the EXIF orientation."""
    return header.mime_type in KEPT_TYPES and header.orientation == 1


def resize(pixels: Pixels, recipe: ImageRecipe) -> Pixels:
    """Resize by the recipe's mode; the very same array where nothing is to be done. Raises SampleError."""
    if recipe.resize == "none":
        return pixels
    height, width = pixels.shape[:2]
    by_shorter_side = recipe.resize in ("keep_ratio", "center_crop")
    side = min(height, width) if by_shorter_side else max(height, width)
    if side <= recipe.size and recipe.only_if_bigger:
        return pixels
    new_width = max(1, round(width * (recipe.size / side)))
    new_height = max(1, round(height * (recipe.size / side)))
    if recipe.resize == "center_crop":
        return _resize_and_crop(pixels, new_width, new_height, recipe.size)
    if new_width * new_height > recipe.max_pixels or max(new_width, new_height) > MAX_SIDES[recipe.format]:
        raise SampleError(DropReason.ASPECT_RATIO, f"{width} x {height} px would become {new_width} x {new_height}")
    resized = _scale(pixels, new_width, new_height)
    return _pad(resized, recipe.size) if recipe.resize == "border" else resized


def _scale(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    interpolation = cv2.INTER_AREA if width < pixels.shape[1] or height < pixels.shape[0] else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8)


def _resize_and_crop(pixels: Pixels, width: int, height: int, size: int) -> Pixels:
    """Scale so that the shorter side is `size`, then cut the middle square.

    A very long image is cut before it is scaled up, or a strip of 1 x 60,000 px would become 15 million rows.
    """
    if width * height > 64 * size * size:
        old_height, old_width = pixels.shape[:2]
        middle = 4 * min(old_height, old_width)
        top, left = max(0, (old_height - middle) // 2), max(0, (old_width - middle) // 2)
        pixels = pixels[top : top + middle, left : left + middle]
        width, height = (size, 4 * size) if width < height else (4 * size, size)
    scaled = _scale(pixels, width, height)
    top, left = (height - size) // 2, (width - size) // 2
    return scaled[top : top + size, left : left + size]


def _pad(pixels: Pixels, size: int) -> Pixels:
    """Centre on a white square; the odd pixel goes to the bottom and right."""
    height, width = pixels.shape[:2]
    square = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def encode(pixels: Pixels, recipe: ImageRecipe) -> bytes:
    """RGB pixels as JPEG (4:2:0, as img2dataset), lossless PNG or WebP. Raises SampleError where they are too long."""
    if max(pixels.shape[:2]) > MAX_SIDES[recipe.format]:
        raise SampleError(DropReason.ASPECT_RATIO, f"{max(pixels.shape[:2])} px is too long for {recipe.format}")
    if recipe.format == "jpg":
        contiguous = np.ascontiguousarray(pixels)
        return bytes(simplejpeg.encode_jpeg(contiguous, recipe.quality, colorspace="RGB", colorsubsampling="420"))
    options = [cv2.IMWRITE_WEBP_QUALITY, recipe.quality] if recipe.format == "webp" else []
    _, encoded = cv2.imencode(f".{recipe.format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()
