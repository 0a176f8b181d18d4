"""Remove metadata from images that keep their bytes: EXIF, XMP, comments, further images after the first one.

Pixels do not change. Colour profiles stay, because colours depend on them. GIFs and files of unexpected structure give
None: such images are encoded again, which removes all metadata.
"""

from __future__ import annotations

import re
import struct

_PNG_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD",
     b"acTL", b"fcTL", b"fdAT")
)  # fmt: skip
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # in entropy-coded data
_SOS, _EOI, _APP0, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE2, 0xEE, 0xFE
_HAS_EXIF, _HAS_XMP = 0x08, 0x04  # flags of WebP's VP8X


def strip_metadata(data: bytes, mime_type: str) -> bytes | None:
    """The image without metadata, or None if it must be encoded again."""
    strip = {"image/jpeg": _strip_jpeg, "image/png": _strip_png, "image/webp": _strip_webp}.get(mime_type)
    try:
        return strip(data) if strip is not None else None
    except (IndexError, struct.error):
        return None


def _strip_jpeg(data: bytes) -> bytes | None:
    """The segments that decoding needs, up to the end of the first image."""
    kept = [data[:2]]
    offset = 2
    while data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        if marker == _EOI:
            return b"".join((*kept, b"\xff\xd9"))
        end = offset + 2 + int(struct.unpack_from(">H", data, offset + 2)[0])
        if marker == _SOS:  # its data has no length field and ends at the next marker
            following = _MARKER.search(data, end)
            if following is None:
                return None
            end = following.end() - 2
        if _is_needed(marker, data[offset + 4 : offset + 16]):
            kept.append(data[offset:end])
        offset = end
    return None


def _is_needed(marker: int, start: bytes) -> bool:
    if marker == _APP2:
        return start.startswith(b"ICC_PROFILE\0")
    if marker == _APP0:
        return start.startswith(b"JFIF\0")
    return marker != _COM and (marker == _APP14 or not 0xE0 <= marker <= 0xEF)


def _strip_png(data: bytes) -> bytes | None:
    kept, offset = [data[:8]], 8
    while offset < len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + size
        if end > len(data):
            return None
        if name in _PNG_CHUNKS:
            kept.append(data[offset:end])
        if name == b"IEND":
            return b"".join(kept)
        offset = end
    return None


def _strip_webp(data: bytes) -> bytes | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kept, offset = [b"WEBP"], 12
    limit = min(len(data), 8 + int(struct.unpack_from("<I", data, 4)[0]))
    while offset + 8 <= limit:
        name, size = struct.unpack_from("<4sI", data, offset)
        end = offset + 8 + size
        if end > limit:
            return None
        chunk = data[offset:end] + b"\0" * (size % 2)
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~(_HAS_EXIF | _HAS_XMP) & 0xFF]) + chunk[9:]
        if name in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"):
            kept.append(chunk)
        offset = end + size % 2
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
