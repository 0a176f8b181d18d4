"""One received image -> what is stored: checked on its header, decoded, hashed, resized, encoded.

Resize modes and their numbers are img2dataset's (`resizer.py` of 1.47): area interpolation down, Lanczos up,
sides rounded half to even, white border. Its pixels differ by one grey level at most, when decoded in full.

Large JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves twice the stored size (`fast_decode`).
On 358 photographs of 1.6 to 12 megapixels that moved a stored pixel by 0.3 to 0.5 of 255 on average (worst image 1.4);
writing it as a JPEG of quality 95 moves it by about 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from pipelines.area_resize import shrink
from pipelines.blur import Boxes, blur_boxes
from pipelines.hashes import exact_hash, hash_pixels, sha256_hex
from pipelines.strip_metadata import strip_metadata
from schemas.curate_recipe import ImageRecipe
from schemas.drop_reason import DropReason
from schemas.errors import SampleError
from schemas.image_decode import EXTENSIONS, ImageHeader, Pixels, decode_reduced, read_header

KEPT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")  # what every WebDataset reader opens
MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
MAX_SIDES = {"jpg": 65500, "png": 1_000_000, "webp": 16383}  # px; what the encoders take
HASHED_SIDE = 128  # px; a reduced decode leaves at least this for the hashes

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
    pixel_hash: str  # of size and pixels as decoded
    phash: int
    thumbnail: bytes

    @property
    def extension(self) -> str:
        """Extension of the member in the tar."""
        return EXTENSIONS[self.mime_type]


@dataclass(frozen=True)
class _Decoded:
    """Pixels, in full or reduced, with the size that the image has in full."""

    pixels: Pixels
    height: int  # px, as received
    width: int
    covered: tuple[float, float]  # height and width of `pixels` that the image covers


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


def _checked_header(data: bytes, recipe: ImageRecipe) -> ImageHeader:
    if len(data) < recipe.min_bytes:
        raise SampleError(DropReason.TOO_FEW_BYTES, f"{len(data)} bytes, fewer than {recipe.min_bytes}")
    if recipe.max_bytes is not None and len(data) > recipe.max_bytes:
        raise SampleError(DropReason.TOO_MANY_BYTES, f"{len(data)} bytes, more than {recipe.max_bytes}")
    header = read_header(data)
    check_limits(header, recipe)
    return header


def store_image(data: bytes, recipe: ImageRecipe, boxes: Boxes = ()) -> StoredImage:
    """Check, decode, hash, resize, blur and encode one image. Raises SampleError with the reason of the drop.

    A pure function of its arguments. Hashes are those of the image before `boxes` were blurred.
    """
    header = _checked_header(data, recipe)
    decoded = _decode(data, header, recipe)
    hashes = hash_pixels(decoded.pixels, decoded.covered)
    sha256 = sha256_hex(data)
    pixels = _resize_decoded(decoded, recipe, boxes)
    kept = _kept_bytes(data, header, recipe) if pixels is decoded.pixels else None
    stored, mime_type = (kept, header.mime_type) if kept is not None else (None, MIME_TYPES[recipe.format])
    if stored is None:
        stored = encode(pixels, recipe)
    return StoredImage(
        data=stored,
        mime_type=mime_type,
        width=pixels.shape[1],
        height=pixels.shape[0],
        original_width=decoded.width,
        original_height=decoded.height,
        sha256=sha256,
        image_sha256=sha256 if stored is data else sha256_hex(stored),
        pixel_hash=exact_hash(decoded.pixels, (decoded.height, decoded.width)),
        phash=hashes.phash,
        thumbnail=hashes.thumbnail,
    )


def inspect_image(data: bytes, recipe: ImageRecipe, boxes: Boxes = ()) -> StoredImage:
    """Like `store_image` for an image that stays where it is: neither resized nor blurred nor encoded."""
    header = _checked_header(data, recipe)
    decoded = _decode(data, header, recipe)
    width, height = decoded.width, decoded.height
    hashes = hash_pixels(decoded.pixels, decoded.covered)
    sha256 = sha256_hex(data)
    exact = exact_hash(decoded.pixels, (height, width))
    return StoredImage(
        data, header.mime_type, width, height, width, height, sha256, sha256, exact, hashes.phash, hashes.thumbnail
    )


def _decode(data: bytes, header: ImageHeader, recipe: ImageRecipe) -> _Decoded:
    """In full, or reduced where that leaves twice what is stored and what is hashed."""
    enough = None
    target = target_size(header.width, header.height, recipe)
    if recipe.fast_decode and target is not None:
        enough = (max(2 * target[0], HASHED_SIDE), max(2 * target[1], HASHED_SIDE))
    pixels, divisor = decode_reduced(data, header, enough)
    if divisor > 1:
        return _Decoded(pixels, header.height, header.width, (header.height / divisor, header.width / divisor))
    height, width = pixels.shape[:2]
    return _Decoded(pixels, height, width, (height, width))


def _kept_bytes(data: bytes, header: ImageHeader, recipe: ImageRecipe) -> bytes | None:
    """The bytes as received, stripped where that is asked for; None where the image has to be encoded.

    Kept is what is upright and of a type that every reader opens; many readers ignore the EXIF orientation.
    """
    if header.mime_type not in KEPT_TYPES or header.orientation != 1:
        return None
    return strip_metadata(data, header.mime_type) if recipe.strip_metadata else data


def target_size(width: int, height: int, recipe: ImageRecipe) -> tuple[int, int] | None:
    """Height and width after scaling, before a crop or a border; None where the image stays as it is."""
    if recipe.resize == "none":
        return None
    by_shorter_side = recipe.resize in ("keep_ratio", "center_crop")
    side = min(height, width) if by_shorter_side else max(height, width)
    if side <= recipe.size and recipe.only_if_bigger:
        return None
    return max(1, round(height * (recipe.size / side))), max(1, round(width * (recipe.size / side)))


def resize(pixels: Pixels, recipe: ImageRecipe, boxes: Boxes = ()) -> Pixels:
    """Resize by the recipe's mode; the very same array where nothing is to be done. Raises SampleError."""
    height, width = pixels.shape[:2]
    return _resize_decoded(_Decoded(pixels, height, width, (height, width)), recipe, boxes)


def _resize_decoded(decoded: _Decoded, recipe: ImageRecipe, boxes: Boxes) -> Pixels:
    """As `resize`, of pixels that may have been decoded at a fraction. Boxes are blurred before a crop or a border."""
    target = target_size(decoded.width, decoded.height, recipe)
    if target is None:
        return blur_boxes(decoded.pixels, boxes)
    height, width = target
    if recipe.resize == "center_crop":
        return _resize_and_crop(decoded, target, recipe.size, boxes)
    if width * height > recipe.max_pixels or max(width, height) > MAX_SIDES[recipe.format]:
        raise SampleError(
            DropReason.ASPECT_RATIO, f"{decoded.width} x {decoded.height} px would become {width} x {height}"
        )
    resized = blur_boxes(_scale(decoded, target), boxes)
    return _pad(resized, recipe.size) if recipe.resize == "border" else resized


def _scale(decoded: _Decoded, target: tuple[int, int]) -> Pixels:
    pixels = decoded.pixels
    if (decoded.height, decoded.width) == target:
        return pixels
    if target[0] < decoded.height or target[1] < decoded.width:
        return shrink(pixels, decoded.covered, target)
    return np.asarray(cv2.resize(pixels, target[::-1], interpolation=cv2.INTER_LANCZOS4), dtype=np.uint8)


def _resize_and_crop(decoded: _Decoded, target: tuple[int, int], size: int, boxes: Boxes) -> Pixels:
    """Scale so that the shorter side is `size`, then cut the middle square.

    A very long image is cut before it is scaled up, or a strip of 1 x 60,000 px would become 15 million rows.
    """
    height, width = target
    if width * height > 64 * size * size:
        pixels = blur_boxes(decoded.pixels, boxes)
        boxes = ()
        old_height, old_width = pixels.shape[:2]
        middle = 4 * min(old_height, old_width)
        top, left = max(0, (old_height - middle) // 2), max(0, (old_width - middle) // 2)
        pixels = pixels[top : top + middle, left : left + middle]
        height, width = (4 * size, size) if width < height else (size, 4 * size)
        decoded = _Decoded(pixels, pixels.shape[0], pixels.shape[1], (pixels.shape[0], pixels.shape[1]))
    scaled = blur_boxes(_scale(decoded, (height, width)), boxes)
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
