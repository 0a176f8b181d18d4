"""An image as ingest stores it."""

from __future__ import annotations

from typing import NamedTuple

from pairloom.schemas.images.columns import EXTENSIONS


class StoredImage(NamedTuple):
    """An image for the tar, with its columns of the tables."""

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
