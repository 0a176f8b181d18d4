"""Constants of image columns, in a module without pyarrow for processes that write no tables."""

from __future__ import annotations

import hashlib

EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif",
              "image/bmp": "bmp", "image/tiff": "tif", "image/avif": "avif", "image/heic": "heic",
              "image/x-portable-anymap": "ppm"}  # fmt: skip
"""mime_type -> extension of the member in the tar."""
MIME_TYPES = {extension: mime_type for mime_type, extension in EXTENSIONS.items()}
"""The inverse of EXTENSIONS."""
THUMBNAIL_SIDE = 8  # px; the RGB thumbnail confirms perceptual duplicates


def sha256_hex(data: bytes) -> str:
    """sha256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
