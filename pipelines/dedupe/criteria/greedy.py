"""Greedy selection among near-duplicates: in keep order, an image is dropped if it is near a *kept* one.

Near means hashes within the radius (256-bit hashes too, if the recipe says so) and thumbnails of nearly the same
colours. A chain A - B - C of near pairs keeps A and C: C is near the dropped B only. The same scan finds components
(all near pairs, kept or not), which become the duplicate groups for folds.

Images are split into blocks without candidate pairs between them; each block is scanned alone. Memory grows with the
number of images, not of pairs: a bucket of many flat images (one colour, logos) has a huge number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes, popcount
from pairloom.pipelines.algorithms.hamming256 import Hashes256
from pairloom.pipelines.algorithms.hamming_pairs import Pairs
from pairloom.pipelines.algorithms.jit import compiled
from pairloom.pipelines.algorithms.union_find import Indices, connect, find, unite

Thumbnails = npt.NDArray[np.uint8]  # [images, 192]

FLAT_RANGE = 8  # of 255; a thumbnail with at most this range in every channel has one colour
IMAGES_PER_BLOCK = 100_000  # more only if one component is larger


@dataclass(frozen=True)
class Candidates:
    """Images with at least one other image whose hash is within the radius."""

    members: Indices  # positions in keep order, ascending
    hash_of: Indices  # hash index per member
    pairs: Pairs  # near pairs of hash indices
    block_of_hash: Indices
    num_blocks: int


@dataclass(frozen=True)
class Block:
    """One block: images in keep order, and the near pairs of their hashes."""

    hash_of: Indices
    pairs: Pairs
    thumbnails: Thumbnails
    hashes256: Hashes256 | None = None  # None: not compared


@dataclass(frozen=True)
class GreedyResult:
    """Results per image of a block, as positions in the block."""

    kept_instead: Indices  # -1: the image is kept
    distance: npt.NDArray[np.int32]  # bits, to the image kept instead
    root: Indices  # first image of its component


def candidates_of(hash_of: Indices, num_hashes: int, pairs: Pairs) -> Candidates:
    """The images with candidates, split into blocks. `hash_of`: hash index of each image, in keep order."""
    is_near = np.bincount(hash_of, minlength=num_hashes) > 1
    is_near[pairs.left] = is_near[pairs.right] = True
    members = np.flatnonzero(is_near[hash_of])
    roots = connect(num_hashes, pairs.left, pairs.right)
    sizes = np.bincount(roots[hash_of[members]], minlength=num_hashes)
    block_of_root = (np.cumsum(sizes) - sizes) // IMAGES_PER_BLOCK
    num_blocks = int(block_of_root[-1]) + 1 if len(members) else 0
    return Candidates(members, hash_of[members], pairs, block_of_root[roots], num_blocks)


def blocks_of(candidates: Candidates) -> Iterator[tuple[Indices, Indices, Pairs]]:
    """Per block: its positions in `members`, and `hash_of` and `pairs` renumbered within the block."""
    block_of_member = candidates.block_of_hash[candidates.hash_of]
    block_of_pair = candidates.block_of_hash[candidates.pairs.left]
    for block in range(candidates.num_blocks):
        positions = np.flatnonzero(block_of_member == block)
        hashes, hash_of = np.unique(candidates.hash_of[positions], return_inverse=True)
        mine = block_of_pair == block
        left = np.searchsorted(hashes, candidates.pairs.left[mine])
        right = np.searchsorted(hashes, candidates.pairs.right[mine])
        yield positions, hash_of.astype(np.int64), Pairs(left, right, candidates.pairs.distance[mine])


def select_greedily(max_colour_difference: float, block: Block, max_distance_256: int | None = None) -> GreedyResult:
    """Select in one block. Images with equal hashes and thumbnail are one node, represented by the best image."""
    if block.hashes256 is None or max_distance_256 is None:
        max_distance_256, hashes256 = 0, np.empty((len(block.hash_of), 0), np.uint64)
    else:
        hashes256 = block.hashes256
    first, node_of = _collapse(block, hashes256)
    hash_of = block.hash_of[first]
    starts, neighbours, distances = _adjacency(int(block.hash_of.max()) + 1, block.pairs)
    thumbnails = block.thumbnails[first].astype(np.int16)
    max_sum = int(max_colour_difference * thumbnails.shape[1])
    edges = (starts, neighbours, distances)
    kept_node, distance, root = _scan(hash_of, edges, thumbnails, hashes256[first], max_sum, max_distance_256)
    images = np.arange(len(node_of))
    kept_instead = np.where(kept_node[node_of] >= 0, first[kept_node[node_of]], first[node_of])
    kept_instead = np.where(kept_instead == images, -1, kept_instead)
    return GreedyResult(kept_instead, distance[node_of], first[root[node_of]])


def is_flat(thumbnails: Thumbnails) -> npt.NDArray[np.bool_]:
    """Whether each image has one colour: its hash is noise, and only the colour distinguishes it."""
    pixels = thumbnails.reshape(len(thumbnails), thumbnails.shape[1] // 3, 3)
    flat: npt.NDArray[np.bool_] = np.ptp(pixels, axis=1).max(axis=1) <= FLAT_RANGE
    return flat


def _collapse(block: Block, hashes256: Hashes256) -> tuple[Indices, Indices]:
    """Nodes of images with equal hashes and thumbnail, in keep order: first image per node, node per image."""
    hashes: Hashes = block.hash_of.astype(">u8")
    columns = [hashes.view(np.uint8).reshape(-1, 8), hashes256.astype(">u8").view(np.uint8), block.thumbnails]
    rows = np.concatenate(columns, axis=1)
    keys = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()
    _, first, node_of = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return first[order], position[node_of]


def _adjacency(num_hashes: int, pairs: Pairs) -> tuple[Indices, Indices, npt.NDArray[np.int32]]:
    """Neighbours of each hash, including itself: neighbours[starts[h]:starts[h + 1]], nearest first."""
    itself = np.arange(num_hashes)
    sources = np.concatenate([itself, pairs.left, pairs.right])
    targets = np.concatenate([itself, pairs.right, pairs.left])
    distances = np.concatenate([np.zeros(num_hashes, np.int32), pairs.distance, pairs.distance])
    order = np.lexsort((targets, distances, sources))
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=num_hashes))]).astype(np.int64)
    return starts, targets[order], distances[order].astype(np.int32)


@compiled
def _same_colours(left: npt.NDArray[np.int16], right: npt.NDArray[np.int16], max_sum: int) -> bool:
    """Whether the absolute differences sum to at most `max_sum`."""
    total = 0
    for start in range(0, len(left), 24):
        for index in range(start, min(start + 24, len(left))):
            total += abs(left[index] - right[index])
        if total > max_sum:
            return False
    return True


@compiled
def _same_bits(left: Hashes, right: Hashes, max_distance: int) -> np.bool_:
    """Whether at most `max_distance` bits differ; without words, no bit differs."""
    distance = np.int64(0)
    for word in range(len(left)):
        distance += popcount(left[word] ^ right[word])
    return distance <= max_distance


@compiled
def _scan(
    hash_of: Indices,
    edges: tuple[Indices, Indices, npt.NDArray[np.int32]],
    thumbnails: npt.NDArray[np.int16],
    hashes256: Hashes256,
    max_sum: int,
    max_distance_256: int,
) -> tuple[Indices, npt.NDArray[np.int32], Indices]:
    """Per node, in keep order: the kept node instead (-1: kept), the distance to it, the root of its component."""
    starts, neighbours, distances = edges
    num_nodes = len(hash_of)
    newest = np.full(len(starts) - 1, -1)  # per hash: newest scanned node; `older` links to the previous ones
    older = np.full(num_nodes, -1)
    brightness = np.array([thumbnails[node].sum() for node in range(num_nodes)])
    kept_instead, distance = np.full(num_nodes, -1), np.zeros(num_nodes, np.int32)
    roots = np.arange(num_nodes)
    for node in range(num_nodes):
        best = -1
        for edge in range(starts[hash_of[node]], starts[hash_of[node] + 1]):
            other = newest[neighbours[edge]]
            while other >= 0:
                # Edges are sorted by distance; among equal distances, the first image in keep order is named.
                is_better = best < 0 or (distances[edge] == distance[node] and other < best)
                is_best = kept_instead[other] < 0 and is_better
                if (
                    (is_best or find(roots, node) != find(roots, other))
                    and abs(brightness[node] - brightness[other]) <= max_sum
                    and _same_bits(hashes256[node], hashes256[other], max_distance_256)
                    and _same_colours(thumbnails[node], thumbnails[other], max_sum)
                ):
                    unite(roots, node, other)
                    if is_best:
                        best, distance[node] = other, distances[edge]
                other = older[other]
        kept_instead[node] = best
        older[node] = newest[hash_of[node]]
        newest[hash_of[node]] = node
    for node in range(num_nodes):
        roots[node] = find(roots, node)
    return kept_instead, distance, roots
