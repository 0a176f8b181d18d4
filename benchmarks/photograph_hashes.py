"""Any number of hashes with the skew of real photographs.

The bits of a perceptual hash of photographs are neither even nor independent: low frequencies go together. From the
hashes of some thousand photographs (`hash_folder`) the bits' own shares and those of pairs of bits are counted, and
`draw_like` draws from the tree of dependences that keeps most of them (Chow and Liu 1968: the spanning tree of largest
mutual information; each bit depends on its parent's value).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.images.hashes import hash_pixels
from pairloom.schemas.images.decode import decode_rgb, read_header

Hashes = npt.NDArray[np.uint64]
NUM_BITS = 64
CHUNK = 1_000_000


def hash_folder(folder: Path) -> Hashes:
    """The pHash of every JPEG below a folder, as ingest computes it."""
    hashes = []
    for path in sorted(folder.rglob("*.jpg")):
        data = path.read_bytes()
        hashes.append(hash_pixels(decode_rgb(data, read_header(data))).phash)
    if not hashes:
        raise SystemExit(f"{folder} holds no photographs (*.jpg)")
    return np.array(hashes, np.uint64)


def bits_of(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """[hashes, 64], the lowest bit first."""
    return (hashes[:, None] >> np.arange(NUM_BITS, dtype=np.uint64) & np.uint64(1)).astype(bool)


def dependences(bits: npt.NDArray[np.bool_]) -> tuple[list[tuple[int, int]], npt.NDArray[np.float64]]:
    """The tree as (bit, parent), the root first with itself, and P(bit is one | parent's value): [64, 2]."""
    values = np.concatenate([bits, ~bits], axis=1).astype(np.float64)
    both = values.T @ values / len(values)  # P(one value and the other)
    expected = np.outer(both.diagonal(), both.diagonal())
    ratio = np.divide(both, expected, out=np.ones_like(both), where=both > 0)
    information = (both * np.log(ratio)).reshape(2, NUM_BITS, 2, NUM_BITS).sum(axis=(0, 2))
    share = both.diagonal()[:NUM_BITS]
    tree, outside = [(0, 0)], set(range(1, NUM_BITS))
    while outside:
        inside = [bit for bit, _ in tree]
        parent, bit = max(((i, o) for i in inside for o in outside), key=lambda edge: information[edge])
        tree.append((bit, parent))
        outside.remove(bit)
    given = np.empty((NUM_BITS, 2))
    for bit, parent in tree:
        for value in (0, 1):
            chosen = bits[bits[:, parent] == bool(value), bit] if bit != parent else bits[:, bit]
            given[bit, value] = chosen.mean() if len(chosen) else share[bit]
    return tree, given


def draw_like(photographs: Hashes, num: int, generator: np.random.Generator) -> Hashes:
    """`num` hashes with the shares of the photographs' bits and of the tree's pairs of bits."""
    tree, given = dependences(bits_of(photographs))
    given = given.astype(np.float32)
    hashes = np.empty(num, np.uint64)
    for start in range(0, num, CHUNK):
        size = min(CHUNK, num - start)
        drawn = np.empty((NUM_BITS, size), bool)
        for bit, parent in tree:
            share = given[bit, 0] if bit == parent else np.where(drawn[parent], given[bit, 1], given[bit, 0])
            drawn[bit] = generator.random(size, np.float32) < share
        packed = np.packbits(drawn[::-1], axis=0)  # [8, size]: the highest bits first
        hashes[start : start + size] = np.ascontiguousarray(packed.T).view(">u8").ravel()
    return hashes
