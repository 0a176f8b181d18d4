"""phash256: a 256-bit perceptual hash of every stored image, for distances in dedupe that 64 bits cannot resolve.

Grey, 64 x 64, DCT, top-left 16 x 16, above the median of all 256: imagehash's phash with hash_size=16. For 110
photographs, recompressed and squashed copies differ in at most 8 bits, different photographs in at least 100. Smooth
images have noise in their high frequencies; their copies differ in up to 26 bits.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pyarrow as pa

from pairloom.pipelines.images.hashes import phash256
from pairloom.pipelines.signals.row_signals import ImageSignal
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.recipes.signals import Name

VERSION = 1
PHASH256_ALGORITHM = "dct64-16x16-median256"
HASH_BYTES = 32
PHASH_SIGNALS = pa.schema(
    [pa.field("uid", pa.string(), nullable=False), pa.field("phash256", pa.binary(HASH_BYTES))],
    metadata={"phash256_algorithm": PHASH256_ALGORITHM},
)


class PhashSignals(ImageSignal):
    """phash256: 256-bit perceptual hash of the stored image, for `dedupe.hashes`."""

    kind: Literal["phash256"]
    name: Name = "phash256"

    version: ClassVar[int] = VERSION
    has_hashes: ClassVar[bool] = True
    arrow_schema: ClassVar[pa.Schema] = PHASH_SIGNALS

    def measure_image(self, pixels: Pixels) -> tuple[bytes]:
        """The hash."""
        return (phash256(pixels),)
