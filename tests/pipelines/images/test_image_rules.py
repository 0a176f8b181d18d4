"""Stored images: orientation, modes, reduced decode, stripped metadata, blurred boxes, limits."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError, features

from pairloom.pipelines.images.area_resize import shrink
from pairloom.pipelines.images.blur import blur_boxes
from pairloom.pipelines.images.boxes import read_boxes
from pairloom.pipelines.images.store_image import check_limits, store_image
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import decode_rgb, read_header
from tests.support.image_files import encoded, largest_difference, photo, recipe

ORIENTED: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", list(ORIENTED))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photo(60, 40))
    opposite = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
                6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}.get(orientation)  # fmt: skip
    turned = image.transpose(Image.Transpose[opposite]) if opposite else image
    data = encoded(np.asarray(turned), kind, exif=exif, **ORIENTED[kind])
    header = read_header(data)
    assert (header.width, header.height) == (60, 40)
    assert np.abs(decode_rgb(data).astype(int) - photo(60, 40)).mean() < 2
    kept = store_image(data, recipe(strip_metadata=True))
    assert kept.width == 60
    assert not Image.open(io.BytesIO(kept.data)).getexif()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_mode(name: str) -> tuple[bytes, np.ndarray]:
    """An image of a mode, and its expected RGB pixels on white."""
    image = Image.fromarray(photo(40, 30))
    grey = image.convert("L")
    half = Image.linear_gradient("L").resize((40, 30))
    if name == "cmyk":  # Adobe's JPEGs hold it inverted, as Pillow writes it
        return saved(image.convert("CMYK"), "JPEG", quality=100, subsampling=0), np.asarray(image)
    if name == "16 bit":
        deep = np.asarray(grey).astype(np.uint16) * 257
        return saved(Image.fromarray(deep), "PNG"), np.asarray(grey.convert("RGB"))
    if name == "grey":
        return saved(grey, "JPEG", quality=100), np.asarray(grey.convert("RGB"))
    if name in ("grey alpha", "rgba"):
        top = grey.convert("LA") if name == "grey alpha" else image.convert("RGBA")
        top.putalpha(half)
        white = Image.new("RGBA", top.size, "white")
        return saved(top, "PNG"), np.asarray(Image.alpha_composite(white, top.convert("RGBA")).convert("RGB"))
    if name == "palette with a transparent colour":
        palette = Image.new("P", (40, 30), 1)
        palette.putpalette([200, 0, 0, 0, 0, 200])
        palette.paste(0, (0, 0, 20, 30))
        shown = np.full((30, 40, 3), 255, np.uint8)
        shown[:, 20:] = (0, 0, 200)
        return saved(palette, "PNG", transparency=0), shown
    frames = [image, Image.new("RGB", image.size, "black")]
    data = saved(frames[0], name, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    return data, np.asarray(image.quantize().convert("RGB") if name == "GIF" else image)


@pytest.mark.parametrize(
    "name",
    ["cmyk", "16 bit", "grey", "grey alpha", "rgba", "palette with a transparent colour", "GIF", "WEBP", "PNG"],
)
def test_odd_modes_and_first_frames(name: str) -> None:
    data, shown = odd_mode(name)
    assert np.abs(decode_rgb(data).astype(int) - shown).mean() < 4
    assert store_image(data, recipe(size=20)).mime_type == "image/jpeg"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_stored_as_jpeg() -> None:
    stored = store_image(encoded(photo(90, 60), "AVIF"), recipe())
    assert (stored.mime_type, stored.width) == ("image/jpeg", 90)


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_stored_as_jpeg(orientation: int) -> None:
    """libheif applies the file's own rotation; the EXIF orientation is ignored (ISO 23008-12)."""
    exif, pixels, buffer = Image.Exif(), photo(90, 60), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "HEIF", exif=exif, quality=95)
    stored = store_image(buffer.getvalue(), recipe())
    assert stored.mime_type == "image/jpeg"
    assert (stored.height, stored.width) == pixels.shape[:2]
    assert np.abs(decode_rgb(stored.data).astype(int) - pixels).mean() < 6


@pytest.mark.parametrize("given", [(1600, 1200), (1923, 1081), (1101, 1501)])
@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decode_gives_the_same_image(given: tuple[int, int], mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(*given), exif=exif)
    fast, full = (store_image(data, recipe(resize=mode, fast_decode=one)) for one in (True, False))
    assert (fast.width, fast.height, fast.original_width) == (full.width, full.height, full.original_width)
    assert np.abs(decode_rgb(fast.data).astype(int) - decode_rgb(full.data)).mean() < 1
    assert (fast.phash ^ full.phash).bit_count() <= 2
    assert store_image(data, recipe(resize=mode)) == fast


@pytest.mark.parametrize("given", [(301, 203), (640, 480), (257, 256), (1000, 33)])
@pytest.mark.parametrize("size", [(32, 32), (33, 256), (7, 199)])
def test_area_is_cv2s(given: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (given[1], given[0], 3), np.uint8)
    expected = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    assert largest_difference(shrink(pixels, pixels.shape[:2], size), expected) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_metadata_is_stripped_without_touching_pixels(kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "SECRET camera"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "SECRET text")
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"comment": b"SECRET", "xmp": b"SECRET xmp", "exif": exif, "progressive": True},
        "PNG": {"pnginfo": text, "exif": exif},
        "WEBP": {"xmp": b"SECRET xmp", "exif": exif},
        "GIF": {"comment": b"SECRET"},
    }
    data = encoded(photo(61, 41), kind, icc_profile=profile, **options[kind])
    behind = data + (b"SECRET further picture" if kind == "JPEG" else b"")
    stored = store_image(behind, recipe(strip_metadata=True))
    assert b"SECRET" in behind
    assert b"SECRET" not in stored.data
    again = Image.open(io.BytesIO(stored.data))
    again.load()
    if kind == "GIF":
        assert again.format == "JPEG"
        return
    assert (again.format, again.info.get("icc_profile")) == (kind, profile)
    assert (decode_rgb(stored.data) == decode_rgb(data)).all()
    assert stored.image_sha256 != stored.sha256
    assert store_image(behind, recipe()).data == behind


def test_boxes_are_blurred_by_the_published_numbers() -> None:
    """A margin of a tenth, sigma of a tenth of the longest side, and a blurred mask, as for ImageNet and DataComp."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    boxes = [(0.1, 0.2, 0.3, 0.6), (0.9, 0.9, 1.1, 1.2)]
    image, mask = pixels.astype(np.float32) / 255, np.zeros((200, 300, 3), np.float32)
    mask[32:128, 22:98] = 1
    mask[174:199, 264:299] = 1
    blurred, share = (cv2.GaussianBlur(one, (0, 0), 8.0) for one in (image, mask))
    expected = ((image * (1 - share) + blurred * share) * 255).astype(np.uint8)
    assert largest_difference(blur_boxes(pixels, boxes), expected) <= 1
    assert blur_boxes(pixels, []) is pixels
    stored = store_image(encoded(pixels, "PNG"), recipe(format="png"), boxes)
    assert largest_difference(decode_rgb(stored.data), expected) <= 1
    assert stored.phash == store_image(encoded(pixels, "PNG"), recipe()).phash


@pytest.mark.parametrize("mode", ["keep_ratio", "none", "center_crop"])
def test_boxes_in_pixels_are_those_of_the_image_as_received(mode: str) -> None:
    """Boxes are in pixels of the upright image before any reduction, scaling or cropping."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    Image.fromarray(np.rot90(pixels)).save(buffer, "JPEG", exif=exif, quality=95)
    settings = recipe(resize=mode, size=200, format="png")
    fractions = store_image(buffer.getvalue(), settings, read_boxes([[0.2, 0.1, 0.4, 0.6]]))
    in_pixels = store_image(buffer.getvalue(), settings, read_boxes([[300, 100, 600, 600]], "pixels"))
    assert fractions.data == in_pixels.data
    assert in_pixels.data != store_image(buffer.getvalue(), settings).data
    for far in ([[1e5, 0, 2e5, 9]], [[0, 0, float("inf"), 1]]):
        with pytest.raises(SampleError, match="not a box of four"):
            store_image(buffer.getvalue(), settings, read_boxes(far, "pixels"))


@pytest.mark.parametrize("cell", ["faces", [1, 2, 3, 4], [[1, 2, 3]], [[0, 0, 40, 50]], [[0, 0, float("nan"), 1]], 7])
def test_boxes_that_cannot_be_read_drop_the_image(cell: object) -> None:
    with pytest.raises(SampleError) as caught:
        read_boxes(cell)
    assert caught.value.drop_reason == DropReason.INVALID_BOXES


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"min_bytes": 10**6}, DropReason.TOO_FEW_BYTES), ({"max_bytes": 100}, DropReason.TOO_MANY_BYTES)],
)
def test_limits_of_bytes(settings: dict[str, object], reason: DropReason) -> None:
    with pytest.raises(SampleError) as caught:
        store_image(encoded(photo(60, 40)), recipe(**settings))
    assert caught.value.drop_reason == reason


def as_pillow_shows(data: bytes) -> np.ndarray | None:
    """The first frame on white; None if Pillow cannot decode it or it has more than 8 bits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                return None
            rgba = image.convert("RGBA") if "A" in image.getbands() or "transparency" in image.info else image
            if rgba.mode == "RGBA":
                rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.asarray(rgba.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return None


@pytest.mark.slow
def test_strange_images_look_as_in_pillow(shared_data: Callable[[str], Path]) -> None:
    compared = 0
    for path in sorted(one for one in shared_data("odd_images").rglob("*") if one.is_file()):
        data = path.read_bytes()
        try:
            header = read_header(data)
            check_limits(header, recipe(max_pixels=10_000_000))
            shown = decode_rgb(data, header)
        except SampleError:
            continue
        expected = as_pillow_shows(data)
        if expected is not None and header.orientation == 1:
            assert shown.shape == expected.shape, path.name
            assert np.abs(shown.astype(int) - expected).mean() < 2, path.name
            compared += 1
    assert compared > 500
