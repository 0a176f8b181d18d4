"""Apply the tombstones of a root to one raw folder: recalled rows lose their image, URL and caption.

Owned shards are written again without them; for adopted tars only the table masks the row. The folder's
`tombstones.json` lists the applied tombstones, so that no shard is scanned twice.
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

NUM_THREADS = 4  # each holds the table of one shard; copying bytes releases the GIL


def apply_tombstones(folder: str) -> dict[str, int]:
    """Recall the rows of a complete raw folder that its root's tombstones name.

    Returns the number of recalled rows by shard. Recalled rows make a new generation. After an interruption, the next
    call finishes.
    """
    finish_rewrite(folder)
    root = root_of(folder)
    names = tombstone_names(root) if root is not None else ()
    head = read_head(folder)
    if not names or head is None or _applied(folder) == (names, head["num_shards"]):
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
    storage.put_bytes(_applied_url(folder), text.encode())
    return recalled


def _applied_url(folder: str) -> str:
    return storage.join(folder, "tombstones.json")


def _applied(folder: str) -> tuple[tuple[str, ...], int]:
    """The applied tombstone lists, and the number of shards then."""
    url = _applied_url(folder)
    if not storage.exists(url):
        return (), 0
    fields = json.loads(storage.read_text(url))
    return tuple(fields["honoured"]), int(fields["num_shards"])


def _recall_shard(rewrite: Rewrite, rules: Rules, name: str) -> int:
    """Stage one shard without the rows that the rules name. Returns their number."""
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
    """The shard with only the samples that have a key: table with new offsets, and manifest entry."""
    num_left = len(keys) - keys.count(None)
    num_before = int(np.sum(np.array(table["status"].to_pylist()) == STATUS_SUCCESS))
    if num_left == num_before:
        return table, old  # all recalled rows have no image
    if old.sha256 is None:
        return table, replace(old, num_samples=num_left)  # an adopted tar is never written
    entry, offsets, _ = rewrite_tar(folder, old, keys, {})
    return with_offsets(table, offsets), entry


def with_offsets(table: pa.Table, offsets: dict[int, int]) -> pa.Table:
    """The table with the offsets of images in a rewritten tar."""
    index = table.schema.get_field_index("offset")
    values = pa.array([offsets.get(row) for row in range(table.num_rows)], pa.int64())
    return table.set_column(index, table.schema.field(index), values)
