"""Duplicate rows of the whole source: of rows with the same uid, only the first is kept.

The uids of a shard are stored as 128-bit numbers in `uids/<shard>.npy`, which also serve to look up one uid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import put_array, read_array

MAX_PART_ROWS = 50_000_000  # per sort, about 2.5 GB; more rows are sorted in parts by their leading bits
READ_THREADS = 16
READ_AHEAD = 256  # shards

Uids = npt.NDArray[np.uint64]  # [rows, 2]: high and low half
Rows = npt.NDArray[np.int64]


def pack_uids(uids: Sequence[str]) -> Uids:
    """Uids of 32 hex digits as [rows, 2]: high and low half."""
    packed = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").reshape(-1, 2)
    return packed.astype(np.uint64)


def uids_url(folder: str, shard_name: str) -> str:
    """URL of the uids of a shard."""
    return storage.join(folder, "uids", f"{shard_name}.npy")


def save_uids(folder: str, shard_name: str, uids: Sequence[str]) -> None:
    """Write the uids of one shard in row order."""
    put_array(uids_url(folder, shard_name), pack_uids(uids))


def find_duplicate_rows(folder: str, shard_names: Sequence[str], max_part_rows: int = MAX_PART_ROWS) -> dict[str, Rows]:
    """Rows with the uid of an earlier row, by shard; shards without such rows are omitted."""
    lengths = [len(uids) for uids in _load(folder, shard_names)]
    starts = np.cumsum([0, *lengths])
    num_parts = 1 << max(0, int(np.ceil(np.log2(max(1, starts[-1]) / max_part_rows))))
    repeated = [np.zeros(0, np.int64)]
    for part in range(num_parts):
        repeated.append(_repeated_positions(folder, shard_names, starts, part, num_parts))
    positions = np.sort(np.concatenate(repeated))
    shards = np.searchsorted(starts, positions, side="right") - 1
    return {shard_names[shard]: positions[shards == shard] - starts[shard] for shard in np.unique(shards)}


def _repeated_positions(
    folder: str, shard_names: Sequence[str], starts: npt.NDArray[np.int64], part: int, num_parts: int
) -> npt.NDArray[np.int64]:
    """Positions (row numbers over all shards) whose uid an earlier position has, for one part of the uids."""
    uids, positions = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    shift = np.uint64(64 - (num_parts.bit_length() - 1))
    for start, loaded in zip(starts, _load(folder, shard_names), strict=False):
        rows = np.arange(len(loaded)) if num_parts == 1 else np.flatnonzero(loaded[:, 0] >> shift == part)
        uids.append(loaded[rows])
        positions.append(start + rows)
    of_part, position = np.concatenate(uids), np.concatenate(positions)
    order = np.lexsort((of_part[:, 1], of_part[:, 0]))  # stable: equal uids keep the order of their positions
    in_order = of_part[order]
    repeats = np.flatnonzero((in_order[1:] == in_order[:-1]).all(axis=1)) + 1
    return np.asarray(position[order[repeats]], dtype=np.int64)


def _load(folder: str, shard_names: Sequence[str]) -> Iterator[Uids]:
    def load(name: str) -> Uids:
        return np.asarray(read_array(uids_url(folder, name)), dtype=np.uint64)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(shard_names), READ_AHEAD):
            yield from pool.map(load, shard_names[first : first + READ_AHEAD])
