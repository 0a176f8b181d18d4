"""Bytes -> pixels: type and size from the header, then one decode to RGB.

Ingest, signals and training use it, so that all of them see the same pixels. The EXIF orientation is applied, alpha is
blended on white, animations give their first frame; 16-bit, CMYK, palette and grey images become 8-bit RGB. Pillow's
wheels read AVIF; the optional package pillow-heif reads HEIC.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError

Pixels = npt.NDArray[np.uint8]  # height x width x 3, RGB

MIME_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
    "PPM": "image/x-portable-anymap",
}
_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if _HAS_HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()
_FORMATS = tuple(name for name in MIME_TYPES if name != "HEIF" or _HAS_HEIF)
_OTHER_FORMATS = (b"<svg", b"<?xml", b"%pdf", b"%!ps", b"8bps", b"\x00\x00\x01\x00", b"\xff\x0a", b"\xffo\xffq")
"""First bytes, in lower case, of SVG, PDF, PostScript, PSD, ICO, JPEG XL and JPEG 2000."""
_EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # `check_limits` checks the header and gives a drop reason


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image; sizes in px are those after the EXIF orientation."""

    mime_type: str
    width: int
    height: int
    is_plain: bool  # an 8-bit RGB or grey JPEG, which the fast decoder supports
    orientation: int = 1  # EXIF orientation; 1 is upright


def read_header(data: bytes) -> ImageHeader:
    """Type and size without decoding. Raises SampleError: not_an_image, unsupported_format, decode_error."""
    if _is_plain_jpeg(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return ImageHeader("image/jpeg", width, height, is_plain=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.format == "MPO":  # Pillow's name for a JPEG with further images after it, as telephones write
                image.format = "JPEG"
            orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1) if _has_exif(image, data) else 1
    except UnidentifiedImageError:
        raise SampleError(_why_unidentified(data), "no image format recognised") from None
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, KeyError, TypeError,
            IndexError, OverflowError, MemoryError, AttributeError, RuntimeError) as error:  # fmt: skip
        raise SampleError(DropReason.DECODE_ERROR, f"header: {error}") from error
    if orientation not in range(1, 9):
        orientation = 1
    width, height = image.size
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    is_plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    return ImageHeader(MIME_TYPES[str(image.format)], width, height, is_plain, orientation)


def _has_exif(image: Image.Image, data: bytes) -> bool:
    """Whether EXIF or XMP data may hold an orientation. Reading EXIF takes longer than the rest of the header.

    The caller uses `Image.Image.getexif`, not the PNG's own, which would decode the image before its limits are
    checked.
    """
    if image.format == "PNG":
        return any(name in image.info for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))
    start = data[: 1 << 16]
    return image.format != "JPEG" or b"Exif\0" in start or b"tiff:Orientation" in start


def _why_unidentified(data: bytes) -> DropReason:
    start = data[:256].lstrip().lower()
    if start.startswith(_OTHER_FORMATS) or data[4:8] in (b"ftyp", b"jP  "):
        return DropReason.UNSUPPORTED_FORMAT
    return DropReason.NOT_AN_IMAGE


def decode_rgb(data: bytes | memoryview, header: ImageHeader | None = None) -> Pixels:
    """Decode to RGB, height x width x 3, uint8. Raises SampleError (decode_error or as `read_header`)."""
    if header is None and _is_plain_jpeg(data):
        try:
            plain: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            return plain
        except ValueError:
            pass
    data = bytes(data)
    return decode_reduced(data, header or read_header(data), None)[0]


def decode_reduced(data: bytes, header: ImageHeader, enough: tuple[int, int] | None) -> tuple[Pixels, int]:
    """Decode to RGB at 1/1, 1/2, 1/4 or 1/8 of the size. Returns the pixels and that divisor.

    A JPEG decodes faster at a fraction of its size. The divisor is the largest that leaves at least `enough` (height,
    width) px; None: full size. Odd sides are rounded up: the last row or column then covers less than the others.
    Raises SampleError as `decode_rgb`.
    """
    if header.is_plain:
        divisor = _divisor(header, enough)
        is_rotated = header.orientation > 4
        height, width = (header.width, header.height) if is_rotated else (header.height, header.width)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data,
                colorspace="RGB",
                strict=True,
                min_height=-(-height // divisor) if divisor > 1 else 0,
                min_width=-(-width // divisor) if divisor > 1 else 0,
                min_factor=divisor,
            )
            return _apply_orientation(pixels, header.orientation), divisor
        except ValueError:
            pass  # truncated or unusual: Pillow decides
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image)), 1
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, KeyError, TypeError,
            IndexError, OverflowError, MemoryError, AttributeError, RuntimeError) as error:  # fmt: skip
        raise SampleError(DropReason.DECODE_ERROR, str(error)) from error


def _is_plain_jpeg(data: bytes | memoryview) -> bool:
    """A fast test for `ImageHeader.is_plain`: with Pillow it takes a tenth of a small image's decode."""
    offset = 2 if data[:2] == b"\xff\xd8" else len(data)
    while offset + 10 <= len(data) and data[offset] == 0xFF:  # header segments: marker, length, content
        if data[offset + 1] == 0xDA:  # start of the image data
            try:
                return simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray")
            except ValueError:
                return False
        end = offset + 2 + (data[offset + 2] << 8 | data[offset + 3])
        if data[offset + 4 : offset + 9] == b"Exif\0" or b"tiff:Orientation" in bytes(data[offset:end]):
            return False
        offset = end
    return False


def _divisor(header: ImageHeader, enough: tuple[int, int] | None) -> int:
    if enough is None:
        return 1
    fits = (one for one in (8, 4, 2) if header.height // one >= enough[0] and header.width // one >= enough[1])
    return next(fits, 1)


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Apply the EXIF orientation 1 .. 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_deep_grey(np.asarray(image))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _scale_deep_grey(values: npt.NDArray[Any]) -> Pixels:
    """Grey of more than 8 bits: 16-bit ranges are divided by 257, others are scaled to their maximum."""
    top = 65535.0 if values.dtype == np.uint16 or values.max() > 255 else 255.0
    grey = np.clip(values.astype(np.float64) * (255.0 / top), 0, 255).round().astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
