"""phash256: a 256-bit perceptual hash of every stored image, for the distances of dedupe that 64 bits cannot tell.

Grey, 64 x 64, DCT, top-left 16 x 16, above the median of all 256: what imagehash calls phash with hash_size=16. Of
110 photographs the recompressed and squashed copies differ in at most 8 bits, two different ones in at least 100;
smooth pictures have noise in their high frequencies, and up to 26 bits of it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.images.hashes import phash256
from pairloom.pipelines.signals.models.actors import open_tar
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import decode_rgb

VERSION = 1
PHASH256_ALGORITHM = "dct64-16x16-median256"
HASH_BYTES = 32
PHASH_SIGNALS = pa.schema(
    [pa.field("uid", pa.string(), nullable=False), pa.field("phash256", pa.binary(HASH_BYTES))],
    metadata={"phash256_algorithm": PHASH256_ALGORITHM},
)


def measure_shard(raw_folder: str, folder: str, shard: ShardEntry) -> None:
    """Write the hashes of one raw shard; rows without an image that can be decoded are null."""
    raw = read_table(table_url(raw_folder, shard.name), ["uid", "status", "offset", "num_bytes"])
    hashes: list[bytes | None] = []
    with open_tar(raw_folder, shard, raw) as reader:
        for row in raw.to_pylist():
            measured = None
            if reader is not None and row["status"] == STATUS_SUCCESS:
                with suppress(SampleError):  # left without a hash: nothing is near it
                    measured = phash256(decode_rgb(reader.read(row["offset"], row["num_bytes"])))
            hashes.append(measured)
    column = pa.array(hashes, pa.binary(HASH_BYTES))
    write_table(table_url(folder, shard.name), pa.table([raw["uid"], column], schema=PHASH_SIGNALS))


def measure_hashes(name: str, raw_folder: str, folder: str, shards: list[ShardEntry], num_done: int) -> None:
    """Hash the images of the given raw shards, one Ray task a shard."""
    run_shards(f"signals {name}", partial(measure_shard, raw_folder, folder), shards, num_done)
