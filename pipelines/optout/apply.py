"""Honour the tombstones of a root in one raw folder: recalled rows lose their image and all that names them.

Owned shards are written again without them; adopted tars stay as they are and only the table masks the row. The file
`tombstones.json` of the folder remembers which lists it has honoured, so that nothing is scanned twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from pairloom.pipelines.optout.rules import Rules, blank_rows, rules_of
from pairloom.pipelines.raw.generation import Rewrite, finish_rewrite, rewrite_tar
from pairloom.pipelines.raw.table import read_result, replace_table
from pairloom.schemas.data_set.generations import read_head
from pairloom.schemas.data_set.manifest import ShardEntry, load_manifest, table_url
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.data_set.tombstones import tombstone_names
from pairloom.schemas.storage import storage

NUM_THREADS = 4  # each holds one shard's table; bytes are copied outside of the interpreter lock


def apply_tombstones(folder: str) -> dict[str, int]:
    """Recall the rows of a complete raw folder that its root's tombstones name: shard -> how many rows.

    Writes a new generation where there are any. Interrupted, the next call finishes.
    """
    finish_rewrite(folder)
    root = root_of(folder)
    names = tombstone_names(root) if root is not None else ()
    head = read_head(folder)
    if not names or head is None or _honoured(folder) == (names, head["num_shards"]):
        return {}
    operation = f"recall-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
    rewrite = Rewrite(folder, operation, head["hash"])
    shards = [shard.name for shard in load_manifest(folder).shards]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        counts = list(pool.map(partial(_recall_shard, rewrite, rules_of(folder, names)), shards))
    recalled = {name: count for name, count in zip(shards, counts, strict=True) if count}
    if recalled:
        rewrite.commit(list(recalled))
    text = json.dumps({"honoured": names, "num_shards": len(shards)}, indent=1)
    storage.put_bytes(_honoured_url(folder), text.encode())
    return recalled


def _honoured_url(folder: str) -> str:
    return storage.join(folder, "tombstones.json")


def _honoured(folder: str) -> tuple[tuple[str, ...], int]:
    """The lists that were honoured, in how many shards."""
    url = _honoured_url(folder)
    if not storage.exists(url):
        return (), 0
    fields = json.loads(storage.read_text(url))
    return tuple(fields["honoured"]), int(fields["num_shards"])


def _recall_shard(rewrite: Rewrite, rules: Rules, name: str) -> int:
    """Stage one shard without the rows that the rules name; returns how many there are."""
    url = table_url(rewrite.folder, name)
    rows = rules.mask(read_table(url, rules.columns))
    if rows.any() and not storage.exists(table_url(rewrite.staging, name)):
        table = read_table(url)
        keys = [None if gone else key for key, gone in zip(table["key"].to_pylist(), rows, strict=True)]
        table, entry = without_images(rewrite.folder, read_result(rewrite.folder, name).entry, table, keys)
        replace_table(rewrite.staging, blank_rows(table, rows), entry)
    return int(rows.sum())


def without_images(
    folder: str, old: ShardEntry, table: pa.Table, keys: Sequence[str | None]
) -> tuple[pa.Table, ShardEntry]:
    """The shard with only the samples that have a key; the table has their new offsets."""
    num_left = len(keys) - keys.count(None)
    num_before = int(np.sum(np.array(table["status"].to_pylist()) == STATUS_SUCCESS))
    if num_left == num_before:
        return table, old  # only rows without images are recalled
    if old.sha256 is None:
        return table, replace(old, num_samples=num_left)  # adopted: not ours to write
    entry, offsets, _ = rewrite_tar(folder, old, keys, {})
    return with_offsets(table, offsets), entry


def with_offsets(table: pa.Table, offsets: dict[int, int]) -> pa.Table:
    """The table with the places of images in a tar that was written again."""
    index = table.schema.get_field_index("offset")
    values = pa.array([offsets.get(row) for row in range(table.num_rows)], pa.int64())
    return table.set_column(index, table.schema.field(index), values)
