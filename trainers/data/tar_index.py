"""Index WebDataset tars on first use, so that they can be read like a curated data set.

The index is next to the tars, in `pairloom-index/<hash8>/`, or in the local cache if that folder is not writable. The
hash covers names, sizes and modification times (or ETags) of the tars, so changed tars get a new index.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, is_complete, save_manifest, table_url
from pairloom.schemas.data_set.shard import ShardReader, shard_name
from pairloom.schemas.data_set.tables import CURATED, make_uid, write_table
from pairloom.schemas.data_set.tar_members import index_tar
from pairloom.schemas.data_set.tar_samples import TarSample, group_samples, image_of
from pairloom.schemas.errors import StorageError
from pairloom.schemas.local_cache import cache_folder
from pairloom.schemas.storage import listing, storage

logger = logging.getLogger("pairloom.data")
STEP = "index"
VERSION = 1
NUM_THREADS = 8
_UID = re.compile(r"[0-9a-f]{32}")


def find_tars(path: str) -> list[str]:
    """Sorted tars of a path: a tar, a folder, a glob, or WebDataset's brace notation."""
    return [file for file in listing.expand(path) if file.lower().endswith(".tar")]


def index_tars(tars: Sequence[str]) -> str:
    """The folder of the tars' index, which is built if it does not exist.

    Raises InputError for tars that cannot be read, StorageError when the storage fails.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        states = list(threads.map(storage.etag, tars))
    identity = json.dumps([VERSION, list(zip(tars, states, strict=True))])
    name = hashlib.sha256(identity.encode()).hexdigest()[:8]
    beside = storage.join(tars[0].rpartition("/")[0] or ".", "pairloom-index", name)
    cached = str(cache_folder() / "indexes" / name)
    for folder in (beside, cached):
        if is_complete(folder):
            return folder
    folder = beside if _is_writable(beside) else cached
    logger.info("%s: indexing %d tars, once, in %s", tars[0], len(tars), folder)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        entries = list(threads.map(lambda pair: _index_tar(folder, *pair), enumerate(tars)))
    save_manifest(folder, Manifest("index", STEP, name, [], entries))
    return folder


def _is_writable(folder: str) -> bool:
    try:
        storage.put_bytes(storage.join(folder, "NOTE"), b"Made by pairloom; may be removed.\n")
    except StorageError:
        return False
    return True


def _index_tar(folder: str, index: int, url: str) -> ShardEntry:
    """Write the index table of one tar."""
    name = shard_name(index)
    with storage.local_copy(url) as path:
        rows = _rows_of(path, name)
        num_bytes = os.path.getsize(path)
    write_table(table_url(folder, name), pa.Table.from_pylist(rows, schema=CURATED))
    return ShardEntry(name, len(rows), len(rows), num_bytes, None, url)


def _rows_of(path: str, shard: str) -> list[dict[str, Any]]:
    """One row per sample with an image and a caption."""
    samples = group_samples(index_tar(path))
    if not samples:
        return []
    reader = ShardReader(path)
    rows = [_row(reader, shard, row, key, sample) for row, (key, sample) in enumerate(samples.items())]
    reader.close()
    return [row for row in rows if row is not None]


def _row(reader: ShardReader, shard: str, row: int, key: str, sample: TarSample) -> dict[str, Any] | None:
    image = image_of(sample)
    fields = _fields(reader, sample)
    text = sample.get("txt")
    caption = (
        reader.read(text.byte_range.offset, text.byte_range.num_bytes).decode("utf-8", "replace")
        if text is not None
        else fields.get("caption")
    )
    if image is None or not isinstance(caption, str) or not caption.strip():
        return None
    uid, url = fields.get("uid"), fields.get("url")
    if not (isinstance(uid, str) and _UID.fullmatch(uid)):
        data = b"" if isinstance(url, str) else reader.read(image.byte_range.offset, image.byte_range.num_bytes)
        uid = make_uid(url if isinstance(url, str) else None, caption.strip(), hashlib.sha256(data).hexdigest())
    return {
        "uid": uid, "key": key, "url": url if isinstance(url, str) else None, "caption": caption.strip(),
        "weight": 1.0, "raw_shard": shard, "raw_row": row,
        "offset": image.byte_range.offset, "num_bytes": image.byte_range.num_bytes,
    }  # fmt: skip


def _fields(reader: ShardReader, sample: TarSample) -> dict[str, Any]:
    member = sample.get("json")
    if member is None:
        return {}
    try:
        fields = json.loads(reader.read(member.byte_range.offset, member.byte_range.num_bytes))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
