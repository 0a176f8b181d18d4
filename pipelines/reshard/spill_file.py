"""Files between the two passes of a global shuffle: samples and their images, sorted by bucket.

A file starts with the offset of each bucket and the end of the last one (int64). A bucket is the size of its rows
(int64), the rows (an Arrow stream), and their images in row order. The task of a bucket reads 16 bytes and one range
per file, for any number of buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.pipelines.reshard.curated_shard import Sample
from pairloom.schemas.storage import storage

FILE, OFFSET = (
    "pairloom.spill",
    "pairloom.spill_offset",
)  # columns of copied rows: local file, image offset
ROWS_AT_ONCE = 1000  # converted to Python objects
INT_BYTES = 8


def write_buckets(url: str, rows: pa.Table, edges: npt.NDArray[np.int64], read: Callable[[Sample], bytes]) -> None:
    """Write rows[edges[b]:edges[b + 1]] and their images as bucket b; `read` returns the image of a row."""
    starts = np.zeros(len(edges), np.int64)
    with storage.build_locally(url) as path, open(path, "wb") as file:
        file.write(starts.tobytes())
        for bucket, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            starts[bucket] = file.tell()
            if last > first:
                _write_bucket(file, rows.slice(first, last - first), read)
        starts[-1] = file.tell()
        file.seek(0)
        file.write(starts.tobytes())


def _write_bucket(file: BinaryIO, rows: pa.Table, read: Callable[[Sample], bytes]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    packed = sink.getvalue()
    file.write(np.int64(packed.size).tobytes())
    file.write(packed)
    for batch in rows.to_batches(ROWS_AT_ONCE):
        for sample in batch.to_pylist():
            file.write(read(sample))


def copy_bucket(url: str, bucket: int, path: Path, copy_bytes: int = storage.COPY_BYTES) -> pa.Table | None:
    """Copy one bucket to a local file, `copy_bytes` at a time.

    Returns its rows with the offsets of their images; None if it is empty.
    """
    start, stop = np.frombuffer(storage.read_range(url, bucket * INT_BYTES, 2 * INT_BYTES), np.int64).tolist()
    if start == stop:
        return None
    with open(path, "wb") as file:
        for first in range(start, stop, copy_bytes):
            file.write(storage.read_range(url, first, min(copy_bytes, stop - first)))
    with open(path, "rb") as file:
        num_bytes = int(np.frombuffer(file.read(INT_BYTES), np.int64)[0])
        rows = pa.ipc.open_stream(file.read(num_bytes)).read_all()
    ends = np.cumsum(rows["num_bytes"].to_numpy()) + INT_BYTES + num_bytes
    rows = rows.append_column(OFFSET, pa.array(ends - rows["num_bytes"].to_numpy(), pa.int64()))
    return rows.append_column(FILE, pa.array([path.name] * rows.num_rows, pa.string()))


def read_copied(folder: Path, sample: Sample) -> bytes:
    """The bytes of the image of a copied row."""
    with open(folder / sample[FILE], "rb") as file:
        file.seek(sample[OFFSET])
        return file.read(sample["num_bytes"])
