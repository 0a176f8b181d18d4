"""Microseconds per body from its pieces to shared memory: SpooledBytes and tempfile.SpooledTemporaryFile.

`python -m benchmarks.spooled_bytes`
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable

from pairloom.pipelines.engine.spooled_bytes import MEMORY_BYTES, SpooledBytes

NUM_REPEATS = 500


def ours(pieces: list[bytes], descriptor: int) -> None:
    """Through SpooledBytes."""
    with SpooledBytes() as body:
        for piece in pieces:
            body.write(piece)
        os.lseek(descriptor, 0, os.SEEK_SET)
        body.copy_to(descriptor)


def of_the_standard_library(pieces: list[bytes], descriptor: int) -> None:
    """Through SpooledTemporaryFile."""
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as body:
        for piece in pieces:
            body.write(piece)
        body.seek(0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        with open(descriptor, "wb", closefd=False, buffering=0) as file:
            file.write(body.read())


def microseconds(work: Callable[[list[bytes], int], None], pieces: list[bytes], descriptor: int) -> float:
    """Median over `NUM_REPEATS` bodies."""
    times = []
    for _ in range(NUM_REPEATS):
        start = time.perf_counter()
        work(pieces, descriptor)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Print one line per size."""
    descriptor = os.memfd_create("body")
    for kib, piece in ((16, 16384), (100, 16384), (500, 16384), (500, 1400)):
        pieces = [bytes(piece)] * (kib * 1024 // piece)
        found = [microseconds(work, pieces, descriptor) for work in (ours, of_the_standard_library)]
        print(f"{kib:4} KiB in pieces of {piece:5} B: ours {found[0]:5.0f} us, standard library {found[1]:5.0f} us")


if __name__ == "__main__":
    main()
