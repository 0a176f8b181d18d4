"""Curated data sets for tests of the trainers, written with the same writer as reshard's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pairloom.schemas.data_set.json_values import json_bytes
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest, table_url
from pairloom.schemas.data_set.shard import ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tables import CURATED, make_uid, write_table
from pairloom.schemas.images.decode import read_header
from tests.support.raw_builder import encoded, photograph


def colour_pairs(num: int) -> list[tuple[bytes, str]]:
    """Images of blobs with distinct captions."""
    return [(encoded(photograph(seed)), f"picture {seed} of soft blobs number {seed * 7 % 13}") for seed in range(num)]


def build_curated(root: str | Path, pairs: Sequence[tuple[bytes, str]], samples_per_shard: int = 16) -> str:
    """Write `root`/curated/train from (image bytes, caption). Returns `root`/curated/train."""
    folder = Path(root) / "curated" / "train" / "00000000"
    entries = []
    for shard_index, start in enumerate(range(0, len(pairs), samples_per_shard)):
        name = shard_name(shard_index)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = []
        with ShardWriter(str(folder / f"{name}.tar")) as writer:
            for row, (image, caption) in enumerate(pairs[start : start + samples_per_shard]):
                key = make_key(shard_index, row)
                header = read_header(image)
                uid = make_uid(f"http://a.test/{start + row}", caption)
                fields = json_bytes({"caption": caption, "uid": uid, "width": header.width, "height": header.height})
                places = writer.add(key, {"jpg": image, "txt": caption.encode(), "json": fields})
                rows.append(
                    {
                        "uid": uid,
                        "key": key,
                        "caption": caption,
                        "width": header.width,
                        "height": header.height,
                        "image_sha256": hashlib.sha256(image).hexdigest(),
                        "mime_type": header.mime_type,
                        "weight": 1.0,
                        "duplicate_group": uid,
                        "raw_shard": name,
                        "raw_row": row,
                        "offset": places["jpg"].offset,
                        "num_bytes": places["jpg"].num_bytes,
                    }
                )
        digest = hashlib.sha256((folder / f"{name}.tar").read_bytes()).hexdigest()
        write_table(table_url(str(folder), name), pa.Table.from_pylist(rows, schema=CURATED))
        entries.append(ShardEntry(name, len(rows), len(rows), writer.num_bytes, digest))
    save_manifest(str(folder), Manifest("train", "curated", "test", [], entries))
    set_latest(str(folder))
    return str(Path(root) / "curated" / "train")
