"""What the tables say of an image, for processes that write none and so shall not load pyarrow."""

from __future__ import annotations

import hashlib

EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif",
              "image/bmp": "bmp", "image/tiff": "tif", "image/avif": "avif", "image/heic": "heic",
              "image/x-portable-anymap": "ppm"}  # fmt: skip
"""mime_type -> extension of the member in the tar."""
THUMBNAIL_SIDE = 8  # px; RGB thumbnail that confirms perceptual duplicates


def sha256_hex(data: bytes) -> str:
    """Hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
