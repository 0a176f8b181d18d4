"""Messages from the decoder process, in msgpack: reading them runs no code, unlike pickle.

The process decodes hostile bytes, so that its worker believes nothing that it cannot check.
"""

from __future__ import annotations

import os
from typing import Any

import msgpack

from pairloom.pipelines.images.stored_image import StoredImage
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.columns import EXTENSIONS

STORED, DROPPED, FAILED = range(3)
MAX_TEXT_CHARS = 4000
_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (TypeError, ValueError, KeyError, RuntimeError)}

DecodeResult = tuple[StoredImage, int] | Exception  # metadata, and number of bytes in the spool file


class InvalidMessageError(ValueError):
    """A message of the decoder process is malformed; the process counts as crashed."""


def pack_result(result: DecodeResult) -> bytes:
    """The message for a result."""
    if isinstance(result, SampleError):
        values: list[Any] = [DROPPED, result.drop_reason.value, _text(result)]
    elif isinstance(result, Exception):
        number = result.errno if isinstance(result, OSError) else None
        values = [FAILED, type(result).__name__, _text(result), number]
    else:
        image, num_bytes = result
        sizes = [image.width, image.height, image.original_width, image.original_height]
        hashes = [image.sha256, image.image_sha256, image.pixel_hash]
        values = [STORED, image.mime_type, *map(int, sizes), *hashes, int(image.phash), image.thumbnail, num_bytes]
    packed: bytes = msgpack.packb(values)
    return packed


def unpack_result(message: bytes | memoryview, max_bytes: int) -> DecodeResult:
    """The result in a message. `max_bytes`: bytes in the spool file. Raises InvalidMessageError."""
    try:
        kind, *values = msgpack.unpackb(message)
        if kind == STORED:
            return _stored(values, max_bytes)
        if kind == DROPPED:
            reason, text = values
            return SampleError(DropReason(reason), _checked(text, str))
        if kind == FAILED:
            name, text, number = values
            return _failure(_checked(name, str), _checked(text, str), number)
    except Exception as error:  # msgpack raises many types
        raise InvalidMessageError(f"decoder process: malformed message ({error}); its image is not used") from error
    raise InvalidMessageError("decoder process: unknown kind of message; its image is not used")


def _stored(values: list[Any], max_bytes: int) -> DecodeResult:
    mime_type, *sizes, sha256, image_sha256, pixel_hash, phash, thumbnail, num_bytes = values
    width, height, original_width, original_height = (_checked(size, int) for size in sizes)
    for text in (sha256, image_sha256, pixel_hash):
        bytes.fromhex(_checked(text, str))
    is_valid = mime_type in EXTENSIONS and min(sizes) > 0 and 0 <= _checked(phash, int) < 1 << 64
    if not is_valid or not 0 <= _checked(num_bytes, int) <= max_bytes:
        raise ValueError("values out of range")
    return StoredImage(
        b"", mime_type, width, height, original_width, original_height, sha256, image_sha256, pixel_hash, phash,
        _checked(thumbnail, bytes),
    ), num_bytes  # fmt: skip


def _failure(name: str, text: str, number: object) -> Exception:
    if number is not None:
        return OSError(_checked(number, int), os.strerror(_checked(number, int)))
    return _ERRORS[name](text) if name in _ERRORS else RuntimeError(f"{name}: {text}")


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _text(error: Exception) -> str:
    return str(error)[:MAX_TEXT_CHARS].encode("utf-8", "backslashreplace").decode()
