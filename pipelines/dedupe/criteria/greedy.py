"""Which near-duplicate stays: images are walked in keep order, and one is dropped when it is near a *kept* one.

Near means: hashes within the radius (256-bit ones too, where that is asked for), and thumbnails of nearly the same
colours. A chain A - B - C of near pairs keeps A and C: C is near the dropped B only. Components (all near pairs, kept
or not) are found on the same walk; they name the duplicate groups that folds are cut by.

Images fall into blocks that share no candidate pair; each block is walked by itself. Memory grows with the images,
not with the pairs: a bucket of many flat images (one colour, logos) has pairs without number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes, popcount
from pairloom.pipelines.algorithms.hamming256 import WideHashes
from pairloom.pipelines.algorithms.hamming_pairs import Pairs
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices, connect, find, unite

Thumbnails = npt.NDArray[np.uint8]  # [images, 192]

FLAT_RANGE = 8  # of 255; a thumbnail that varies less in every channel shows one colour
IMAGES_PER_BLOCK = 100_000  # walked at once, unless one component is larger


@dataclass(frozen=True)
class Candidates:
    """Images with at least one candidate: another image whose hash lies within the radius."""

    members: Indices  # positions in keep order, ascending
    hash_of: Indices  # of each member
    pairs: Pairs  # of hashes
    block_of_hash: Indices
    num_blocks: int


@dataclass(frozen=True)
class Block:
    """What is walked at once: images in keep order, and which of their hashes are near each other."""

    hash_of: Indices
    pairs: Pairs
    thumbnails: Thumbnails
    wide: WideHashes | None = None  # 256-bit hashes; None: nothing is asked of them


@dataclass(frozen=True)
class Walked:
    """For each image of a block, as positions in the block."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the one kept instead
    root: Indices  # first image of its component


def candidates_of(hash_of: Indices, num_hashes: int, pairs: Pairs) -> Candidates:
    """The images worth a look, cut in blocks. `hash_of`: the hash of each image, in keep order."""
    is_near = np.bincount(hash_of, minlength=num_hashes) > 1
    is_near[pairs.left] = is_near[pairs.right] = True
    members = np.flatnonzero(is_near[hash_of])
    roots = connect(num_hashes, pairs.left, pairs.right)
    sizes = np.bincount(roots[hash_of[members]], minlength=num_hashes)
    block_of_root = (np.cumsum(sizes) - sizes) // IMAGES_PER_BLOCK
    num_blocks = int(block_of_root[-1]) + 1 if len(members) else 0
    return Candidates(members, hash_of[members], pairs, block_of_root[roots], num_blocks)


def blocks_of(candidates: Candidates) -> Iterator[tuple[Indices, Indices, Pairs]]:
    """For each block: its places in `members`, and `hash_of` and `pairs` renumbered within the block."""
    block_of_member = candidates.block_of_hash[candidates.hash_of]
    block_of_pair = candidates.block_of_hash[candidates.pairs.left]
    for block in range(candidates.num_blocks):
        places = np.flatnonzero(block_of_member == block)
        hashes, hash_of = np.unique(candidates.hash_of[places], return_inverse=True)
        mine = block_of_pair == block
        left = np.searchsorted(hashes, candidates.pairs.left[mine])
        right = np.searchsorted(hashes, candidates.pairs.right[mine])
        yield places, hash_of.astype(np.int64), Pairs(left, right, candidates.pairs.distance[mine])


def walk(max_colour_difference: float, block: Block, max_distance_256: int | None = None) -> Walked:
    """Walk one block. Images equal in hashes and thumbnail are walked as one, by the best of them."""
    if block.wide is None or max_distance_256 is None:
        max_distance_256, wide = 0, np.empty((len(block.hash_of), 0), np.uint64)
    else:
        wide = block.wide
    first, node_of = _collapse(block, wide)
    hash_of = block.hash_of[first]
    starts, neighbours, distances = _adjacency(int(block.hash_of.max()) + 1, block.pairs)
    thumbnails = block.thumbnails[first].astype(np.int16)
    max_sum = int(max_colour_difference * thumbnails.shape[1])
    edges = (starts, neighbours, distances)
    kept_node, distance, root = _walk(hash_of, edges, thumbnails, wide[first], max_sum, max_distance_256)
    images = np.arange(len(node_of))
    kept_instead = np.where(kept_node[node_of] >= 0, first[kept_node[node_of]], first[node_of])
    kept_instead = np.where(kept_instead == images, -1, kept_instead)
    return Walked(kept_instead, distance[node_of], first[root[node_of]])


def is_flat(thumbnails: Thumbnails) -> npt.NDArray[np.bool_]:
    """True for images of one colour: their hash is noise, only the colour tells them apart."""
    pixels = thumbnails.reshape(len(thumbnails), thumbnails.shape[1] // 3, 3)
    flat: npt.NDArray[np.bool_] = np.ptp(pixels, axis=1).max(axis=1) <= FLAT_RANGE
    return flat


def _collapse(block: Block, wide: WideHashes) -> tuple[Indices, Indices]:
    """Nodes of images equal in hashes and thumbnail, in keep order: the first image of each, and each image's node."""
    hashes: Hashes = block.hash_of.astype(">u8")
    parts = [hashes.view(np.uint8).reshape(-1, 8), wide.astype(">u8").view(np.uint8), block.thumbnails]
    rows = np.concatenate(parts, axis=1)
    keys = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()
    _, first, node_of = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[node_of]


def _adjacency(num_hashes: int, pairs: Pairs) -> tuple[Indices, Indices, npt.NDArray[np.int32]]:
    """Neighbours of each hash, itself included: neighbours[starts[h]:starts[h + 1]], nearest first."""
    itself = np.arange(num_hashes)
    sources = np.concatenate([itself, pairs.left, pairs.right])
    targets = np.concatenate([itself, pairs.right, pairs.left])
    distances = np.concatenate([np.zeros(num_hashes, np.int32), pairs.distance, pairs.distance])
    order = np.lexsort((targets, distances, sources))
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=num_hashes))]).astype(np.int64)
    return starts, targets[order], distances[order].astype(np.int32)


@compiled
def _same_colours(left: npt.NDArray[np.int16], right: npt.NDArray[np.int16], max_sum: int) -> bool:
    """True when the absolute differences sum up to at most `max_sum`."""
    total = 0
    for start in range(0, len(left), 24):
        for place in range(start, min(start + 24, len(left))):
            total += abs(left[place] - right[place])
        if total > max_sum:
            return False
    return True


@compiled
def _same_bits(left: Hashes, right: Hashes, max_distance: int) -> np.bool_:
    """True when at most `max_distance` bits differ; without words none do."""
    distance = np.int64(0)
    for word in range(len(left)):
        distance += popcount(left[word] ^ right[word])
    return distance <= max_distance


@compiled
def _walk(
    hash_of: Indices,
    edges: tuple[Indices, Indices, npt.NDArray[np.int32]],
    thumbnails: npt.NDArray[np.int16],
    wide: WideHashes,
    max_sum: int,
    max_distance_256: int,
) -> tuple[Indices, npt.NDArray[np.int32], Indices]:
    """For nodes in keep order: the kept node instead (-1: kept), the distance to it, the root of the component."""
    starts, neighbours, distances = edges
    num_nodes = len(hash_of)
    newest = np.full(len(starts) - 1, -1)  # of the nodes walked so far, by hash; the older ones by `older`
    older = np.full(num_nodes, -1)
    brightness = np.array([thumbnails[node].sum() for node in range(num_nodes)])
    kept_instead, distance = np.full(num_nodes, -1), np.zeros(num_nodes, np.int32)
    roots = np.arange(num_nodes)
    for node in range(num_nodes):
        best = -1
        for edge in range(starts[hash_of[node]], starts[hash_of[node] + 1]):
            other = newest[neighbours[edge]]
            while other >= 0:
                # Edges come nearest first: at one distance the image that is first in keep order is named.
                is_better = best < 0 or (distances[edge] == distance[node] and other < best)
                decides = kept_instead[other] < 0 and is_better
                if (
                    (decides or find(roots, node) != find(roots, other))
                    and abs(brightness[node] - brightness[other]) <= max_sum
                    and _same_bits(wide[node], wide[other], max_distance_256)
                    and _same_colours(thumbnails[node], thumbnails[other], max_sum)
                ):
                    unite(roots, node, other)
                    if decides:
                        best, distance[node] = other, distances[edge]
                other = older[other]
        kept_instead[node] = best
        older[node] = newest[hash_of[node]]
        newest[hash_of[node]] = node
    for node in range(num_nodes):
        roots[node] = find(roots, node)
    return kept_instead, distance, roots
