"""Pixels: equal to the Hugging Face processor of an export, for any kind of image."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import decode_rgb, read_header
from pairloom.schemas.images.preprocess import Preprocess

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width * 1000 + height)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(640, 480), (31, 200), (64, 64), (333, 100), (101, 334)])
@pytest.mark.parametrize("mode", ["squash", "center_crop"])
def test_equals_the_hugging_face_processor(size: tuple[int, int], mode: str) -> None:
    pixels = picture(*size)
    ours = Preprocess(64, mode, CLIP_MEAN, CLIP_STD)  # type: ignore[arg-type]
    processor_class = SiglipImageProcessorPil if mode == "squash" else CLIPImageProcessorPil
    processor = processor_class(**ours.processor_config(processor_class.__name__))
    theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    mine = ours.normalise(ours.resize(pixels)[None])
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_orientation_alpha_and_deep_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = encode(picture(40, 20), "JPEG", exif=exif.tobytes(), quality=95)
    assert (read_header(turned).width, read_header(turned).height) == (20, 40)
    assert decode_rgb(turned).shape == (40, 20, 3)
    clear = encode(np.zeros((8, 8, 4), np.uint8), "PNG")
    assert (decode_rgb(clear) == 255).all()
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(deep, "PNG")
    assert (decode_rgb(deep.getvalue()) == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><p>no", DropReason.NOT_AN_IMAGE),
        (b"<svg xmlns='x'/>", DropReason.UNSUPPORTED_FORMAT),
        (b"%PDF-1.4", DropReason.UNSUPPORTED_FORMAT),
        (encode(picture(64, 64), "JPEG")[:400], DropReason.DECODE_ERROR),
        (encode(picture(64, 64), "PNG")[:400], DropReason.DECODE_ERROR),
    ],
)
def test_broken_images_have_a_reason(data: bytes, reason: DropReason) -> None:
    with pytest.raises(SampleError) as raised:
        decode_rgb(data)
    assert raised.value.drop_reason is reason
