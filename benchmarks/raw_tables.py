"""Raw tables of synthetic samples, for benchmarks of steps that read only tables."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, table_url
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.data_set.tables import SAMPLE, write_table

ROWS_PER_SHARD = 10_000


def write_raw(root: Path, num: int) -> str:
    """Raw tables of `num` samples without images: a tenth repeat the bytes of another, a tenth look like another."""
    folder, generator = str(root / "raw"), np.random.default_rng(0)
    phashes = generator.integers(0, 2**64, num, dtype=np.uint64)
    near, equal = generator.random(num) < 0.1, generator.random(num) < 0.1
    source = generator.integers(0, num, num)
    flips = np.uint64(1) << generator.integers(0, 64, num, dtype=np.uint64)
    phashes = np.where(near, phashes[source] ^ flips, phashes)
    bytes_of = np.where(equal, source, np.arange(num))
    phashes = phashes[bytes_of]
    entries = []
    for index, first in enumerate(range(0, num, ROWS_PER_SHARD)):
        rows = slice(first, first + ROWS_PER_SHARD)
        size = len(phashes[rows])
        digests = [hashlib.sha256(b"%d" % image).hexdigest() for image in bytes_of[rows].tolist()]
        side = pa.array(generator.integers(200, 2000, size), pa.int32())
        columns = {name: pa.nulls(size, SAMPLE.field(name).type) for name in SAMPLE.names} | {
            "uid": pa.array([generator.bytes(16).hex() for _ in range(size)]),
            "url": pa.array([f"http://site{row % 999}.test/{row}.jpg" for row in range(first, first + size)]),
            "caption": pa.array([f"a photograph of something, number {row}" for row in range(size)]),
            "status": pa.array(["success"] * size),
            "sha256": pa.array(digests),
            "image_sha256": pa.array(digests),
            "phash": pa.array(phashes[rows]),
            "thumbnail": pa.array([bytes(192)] * size, pa.binary(192)),
            "original_width": side,
            "original_height": side,
        }
        write_table(table_url(folder, shard_name(index)), pa.table(columns, schema=SAMPLE))
        entries.append(ShardEntry(shard_name(index), size, size, 0))
    save_manifest(folder, Manifest("raw", "raw", "0" * 64, [], entries))
    return folder
