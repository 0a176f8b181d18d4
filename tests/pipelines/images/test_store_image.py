"""Stored images: img2dataset's resize modes, limits from the header, hashes, unusual real images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pytest
from PIL import Image

from pairloom.pipelines.images.hashes import hash_pixels
from pairloom.pipelines.images.store_image import check_limits, inspect_image, resize, store_image
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import decode_rgb, read_header
from tests.support.image_files import encoded, largest_difference, photo, png_header, recipe


@pytest.mark.parametrize(
    ("mode", "size", "only_if_bigger", "given", "expected"),
    [
        ("keep_ratio", 100, True, (300, 200), (150, 100)),
        ("keep_ratio", 100, True, (301, 203), (148, 100)),
        ("keep_ratio", 100, True, (90, 300), (90, 300)),
        ("keep_ratio", 100, False, (50, 80), (100, 160)),
        ("keep_ratio_largest", 100, True, (300, 200), (100, 67)),
        ("keep_ratio_largest", 100, True, (80, 60), (80, 60)),
        ("keep_ratio_largest", 100, False, (80, 60), (100, 75)),
        ("center_crop", 100, True, (300, 200), (100, 100)),
        ("center_crop", 100, True, (300, 90), (300, 90)),
        ("center_crop", 100, False, (300, 90), (100, 100)),
        ("border", 100, True, (300, 200), (100, 100)),
        ("border", 100, True, (80, 60), (80, 60)),
        ("border", 100, False, (80, 60), (100, 100)),
        ("none", 100, True, (300, 200), (300, 200)),
    ],
)
def test_sizes_of_the_resize_modes(
    mode: str, size: int, only_if_bigger: bool, given: tuple[int, int], expected: tuple[int, int]
) -> None:
    settings = recipe(resize=mode, size=size, only_if_bigger=only_if_bigger)
    data = encoded(photo(*given))
    stored = store_image(data, settings)
    assert (stored.width, stored.height) == expected
    assert (stored.original_width, stored.original_height) == given
    header = read_header(stored.data)
    assert (header.width, header.height) == expected
    assert (stored.data == data) == (given == expected), "what is not resized keeps its bytes"


def test_pixels_of_the_resize_modes() -> None:
    """Area down, Lanczos up, white border, centre crop: img2dataset 1.47's resizer in a few lines."""
    pixels = photo(301, 203)
    small = cv2.resize(pixels, (148, 100), interpolation=cv2.INTER_AREA)
    assert largest_difference(resize(pixels, recipe(resize="keep_ratio", size=100)), small) <= 1
    assert largest_difference(resize(pixels, recipe(resize="center_crop", size=100)), small[:, 24:124]) <= 1
    flat = cv2.resize(pixels, (100, 67), interpolation=cv2.INTER_AREA)
    square = resize(pixels, recipe(resize="border", size=100))
    assert largest_difference(square[16:83], flat) <= 1
    assert (square[:16] == 255).all()
    assert (square[83:] == 255).all()
    large = cv2.resize(pixels, (593, 400), interpolation=cv2.INTER_LANCZOS4)
    assert (resize(pixels, recipe(resize="keep_ratio", size=400, only_if_bigger=False)) == large).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_formats(kind: str) -> None:
    pixels = photo(300, 200)
    stored = store_image(encoded(pixels, "PNG"), recipe(size=100, format=kind))
    assert stored.extension == kind
    expected = resize(pixels, recipe(size=100)).astype(int)
    difference = np.abs(decode_rgb(stored.data).astype(int) - expected)
    assert difference.mean() < (0.01 if kind == "png" else 3)


@pytest.mark.parametrize("mode", ["keep_ratio", "keep_ratio_largest", "center_crop", "border", "none"])
@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("given", [(1, 1), (1, 3000), (3000, 2), (65000, 1), (7, 7)])
def test_no_shape_breaks_a_mode(mode: str, only_if_bigger: bool, given: tuple[int, int]) -> None:
    settings = recipe(resize=mode, size=64, only_if_bigger=only_if_bigger)
    data = encoded(photo(*given), "PNG")
    if not only_if_bigger and mode == "keep_ratio" and max(given) / min(given) > 1000:
        with pytest.raises(SampleError, match="would become"):
            store_image(data, settings)
        return
    stored = store_image(data, settings)
    assert decode_rgb(stored.data).shape == (stored.height, stored.width, 3)
    if mode in ("border", "center_crop") and not only_if_bigger:
        assert (stored.width, stored.height) == (64, 64)


@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    [
        ((20_000, 20_000), {}, DropReason.TOO_MANY_PIXELS),
        ((2**31 - 1, 2**31 - 1), {}, DropReason.TOO_MANY_PIXELS),
        ((1, 1), {"min_side": 2}, DropReason.TOO_SMALL),
        ((199, 800), {"min_side": 200}, DropReason.TOO_SMALL),
        ((100, 301), {"max_aspect_ratio": 3}, DropReason.ASPECT_RATIO),
        ((100, 300), {"max_aspect_ratio": 3, "min_side": 100, "max_pixels": 30_000}, None),
    ],
)
def test_limits_are_read_from_the_header(
    given: tuple[int, int], settings: dict[str, object], expected: DropReason | None
) -> None:
    data = png_header(*given)
    if expected is None:
        check_limits(read_header(data), recipe(**settings))
        return
    with pytest.raises(SampleError) as caught:
        store_image(data, recipe(**settings))
    assert caught.value.drop_reason == expected


def test_orientation_is_applied_and_written_out() -> None:
    upright = photo(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.rot90(upright), exif=exif, quality=95, subsampling=0)
    stored = store_image(turned, recipe(size=256))
    assert (stored.width, stored.height) == (60, 40)
    assert stored.image_sha256 != stored.sha256, "readers that ignore EXIF see it upright too"
    assert np.abs(decode_rgb(stored.data).astype(int) - upright).mean() < 9, "chroma is halved"


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_types_that_readers_do_not_open_are_encoded(kind: str) -> None:
    stored = store_image(encoded(photo(30, 20), kind), recipe())
    assert stored.mime_type == "image/jpeg"
    assert stored.extension == "jpg"


def test_an_image_in_place_keeps_its_bytes() -> None:
    data = encoded(photo(900, 700), "PNG")
    seen = inspect_image(data, recipe(size=100))
    assert (seen.width, seen.height, seen.data) == (900, 700, data)
    assert seen.phash == store_image(data, recipe(size=100)).phash


def test_phash_is_close_to_imagehash_and_stays_under_recompression() -> None:
    distances, moved = [], []
    for seed in range(40):
        pixels = photo(320, 240, seed)
        ours = hash_pixels(pixels).phash
        theirs = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
        distances.append((ours ^ theirs).bit_count())
        again = decode_rgb(encoded(pixels, quality=50))
        moved.append((ours ^ hash_pixels(again).phash).bit_count())
        assert ours.bit_count() == 32 or len(np.unique(pixels)) < 3, "half of the bits lie above the median"
    assert np.mean(distances) <= 4
    assert np.mean(moved) <= 2
    assert len({hash_pixels(photo(320, 240, seed)).phash for seed in range(40)}) == 40


def test_phash_golden() -> None:
    """Hashes are stored in data sets, so they must not change."""
    side = np.arange(64, dtype=np.uint8)
    pixels = np.stack([np.add.outer(side, side * 2), np.add.outer(side * 3, side), np.bitwise_xor.outer(side, side)], 2)
    hashes = hash_pixels(np.ascontiguousarray(pixels))
    assert f"{hashes.phash:016x}" == "a813fd66b53a5d40"
    assert len(hashes.thumbnail) == 192


def test_recompressed_photographs_have_close_hashes(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("dedup_triples")
    hashes = {path.relative_to(folder).as_posix(): hash_pixels(decode_rgb(path.read_bytes())).phash
              for path in sorted(folder.rglob("*.jpg"))}  # fmt: skip
    inside, number = [], 0
    for line in (folder / "groups.jsonl").read_text().splitlines():
        group = json.loads(line)
        names = [value for value in group.values() if isinstance(value, str) and value in hashes]
        names += [one for value in group.values() if isinstance(value, list) for one in value if one in hashes]
        inside += [(hashes[a] ^ hashes[b]).bit_count() for a in names for b in names if a < b]
        number += 1
    assert number == 110
    assert len(inside) == 330
    assert max(inside) <= 4


def test_every_strange_image_is_stored_or_has_a_reason(shared_data: Callable[[str], Path]) -> None:
    paths = sorted(path for path in shared_data("odd_images").rglob("*") if path.is_file())
    reasons: Counter[str] = Counter()
    for path in paths:
        try:
            stored = store_image(path.read_bytes(), recipe())
            assert decode_rgb(stored.data).shape == (stored.height, stored.width, 3)
            reasons["stored"] += 1
        except SampleError as error:
            reasons[error.drop_reason] += 1
    assert sum(reasons.values()) == len(paths) >= 700
    assert reasons["stored"] > 500
    assert set(reasons) <= {"stored", *DropReason}
