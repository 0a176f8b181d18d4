"""DataComp's subset files: a sorted `.npy` of dtype `u8,u8`, the two halves of each uid (arXiv 2304.14108).

DataComp's `resharder.py` and its baselines use them; a selection writes one, the rule `subset` reads one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pairloom.pipelines.raw.row_uids import Uids, pack_uids
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.arrays import read_array

DTYPE = np.dtype("u8,u8")
NUM_THREADS = 8


def write_subset(selection_folder: str, url: str) -> int:
    """Write the kept uids of a selection. Returns their number. Raises InputError for uids without 32 hex digits."""
    manifest = load_manifest(selection_folder)

    def kept(name: str) -> Uids:
        table = read_table(table_url(selection_folder, name), ["uid", "kept"])
        try:
            return pack_uids(table.filter(pc.field("kept"))["uid"].to_pylist())
        except ValueError as error:
            raise InputError(
                f"{selection_folder}: {name}: a uid does not have 32 hex digits; DataComp's files need them"
            ) from error

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        by_shard = list(pool.map(kept, [shard.name for shard in manifest.shards]))
    uids = np.concatenate([np.zeros((0, 2), np.uint64), *by_shard])
    ordered = np.ascontiguousarray(uids[np.lexsort((uids[:, 1], uids[:, 0]))])
    with storage.build_locally(url) as path, open(path, "wb") as file:
        np.save(file, ordered.view(DTYPE).reshape(-1))
    return len(ordered)


@lru_cache(maxsize=1)
def read_subset(url: str) -> Uids:
    """The sorted uids [rows, 2] of a subset file; a local file is memory-mapped. Raises InputError."""
    try:
        loaded = np.load(storage.local_path(url), mmap_mode="r") if storage.is_local(url) else read_array(url)
    except FileNotFoundError as error:
        raise InputError(f"select.subset: {url}: no such file") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"select.subset: {url}: not a .npy file: {error}") from error
    if loaded.dtype != DTYPE or loaded.ndim != 1:
        raise InputError(f"select.subset: {url}: is {loaded.dtype} {loaded.shape}; save one list of u8,u8")
    high = loaded["f0"]
    if np.any(high[1:] < high[:-1]):
        loaded = np.sort(loaded)
    return np.asarray(loaded).view(np.uint64).reshape(-1, 2)


def is_member(uids: Uids, subset: Uids) -> npt.NDArray[np.bool_]:
    """Whether each uid is in a sorted subset."""
    first = np.searchsorted(subset[:, 0], uids[:, 0], side="left")
    last = np.searchsorted(subset[:, 0], uids[:, 0], side="right")
    found = np.zeros(len(uids), bool)
    for step in range(int((last - first).max(initial=0))):  # one step, unless uids share their first half
        index = np.minimum(first + step, len(subset) - 1)
        found |= (first + step < last) & (subset[index, 1] == uids[:, 1])
    return found
