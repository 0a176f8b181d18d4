"""Read results without Ray: of a root, of one data set, or of one sample."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.engine.step_folder import latest_folder
from pairloom.schemas.data_set.generations import stale_lines
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, is_complete, load_manifest, resolve, table_url
from pairloom.schemas.data_set.result_path import STEP_FOLDERS
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

NUM_SAMPLES = 5
NUM_THREADS = 8
_NOT_SHOWN = {"thumbnail", "phash", "pixel_hash"}  # bytes and hashes


def inspect(path: str) -> dict[str, Any]:
    """Counts, sizes, drop reasons and a few samples of a data set, or the funnel of a root. Raises InputError."""
    if any(storage.exists(storage.join(path, step)) for step in STEP_FOLDERS) and not is_complete(path):
        return _inspect_root(path)
    folder = resolve(path)
    manifest = load_manifest(folder)
    return {**_summary(folder, manifest), "details": dict(manifest.details), "samples": _samples(folder, manifest)}


def _inspect_root(root: str) -> dict[str, Any]:
    """The newest data sets below a root, and the number of samples after each step."""
    data_sets = {f"{step}/{name}": _summary(folder, load_manifest(folder)) for step, name, folder in _newest(root)}
    funnel = {
        key: data_set["num_kept"]
        for key, data_set in data_sets.items()
        if not key.startswith(("signals/", "balance/", "raw/"))
    }
    raw = {key: data_set for key, data_set in data_sets.items() if key.startswith("raw/")}
    rows = {f"{key} rows": data_set["num_rows"] for key, data_set in raw.items()}
    images = {f"{key} images": data_set["num_kept"] for key, data_set in raw.items()}
    return {"kind": "root", "path": root, "funnel": {**rows, **images, **funnel}, "data_sets": data_sets}


def _newest(root: str) -> Iterator[tuple[str, str, str]]:
    """(step, name, folder) of the newest complete data sets, in the order of the steps."""
    for step in STEP_FOLDERS:
        for url in storage.list_files(storage.join(root, step)):
            name = storage.name_of(url)
            folder = latest_folder(root, step, name)
            if folder is not None and is_complete(folder):
                yield step, name, folder


def _summary(folder: str, manifest: Manifest) -> dict[str, Any]:
    reasons = sorted(manifest.drop_counts.items(), key=lambda pair: (-pair[1], pair[0]))
    stale = stale_lines(folder)
    return {
        "kind": manifest.step,
        **({"stale": stale} if stale else {}),
        "name": manifest.name,
        "path": folder,
        "num_shards": len(manifest.shards),
        "num_rows": manifest.num_rows,
        "num_kept": manifest.num_samples,
        "num_bytes": manifest.num_bytes,
        "drop_counts": dict(reasons),
        "manifest_hash": manifest.hash(),
        **({"generation": manifest.generation} if manifest.step == "raw" else {}),
    }


def _samples(folder: str, manifest: Manifest) -> list[dict[str, Any]]:
    """The first few samples; only kept ones if the table has decisions."""
    for shard in manifest.shards:
        table = read_table(table_url(folder, shard.name))
        if "kept" in table.column_names:
            table = table.filter(table["kept"])
        if "status" in table.column_names:
            table = table.filter(pc.equal(table["status"], "success"))
        if table.num_rows:
            return [_shown(row) for row in table.slice(0, NUM_SAMPLES).to_pylist()]
    return []


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _NOT_SHOWN and not isinstance(value, bytes)}


def explain(root: str, uid: str) -> dict[str, Any]:
    """The decision of every step about one sample, with its values. Raises InputError for an unknown uid."""
    found: dict[str, Any] = {"uid": uid}
    positions: dict[str, tuple[str, int]] = {}  # (shard, row) in each raw data set, by its manifest hash
    for step, name, folder in _newest(root):
        manifest = load_manifest(folder)
        if step in ("raw", "curated"):
            position = find_uid(folder, manifest, uid)
            if step == "raw" and position is not None:
                positions[manifest.hash()] = position
        else:
            position = positions.get(manifest.parents[0])
        if position is not None:
            row = _shown(read_table(table_url(folder, position[0])).slice(position[1], 1).to_pylist()[0])
            found[f"{step}/{name}"] = {"folder": folder, "shard": position[0], "row": position[1], **row}
    if not positions:
        raise InputError(f"{root}: no sample has the uid {uid}; check the uid and the root")
    return {**found, "verdict": _verdict(found)}


def find_uid(folder: str, manifest: Manifest, uid: str) -> tuple[str, int] | None:
    """Shard and row of a uid; of duplicate rows, the one with an image. Reads one column of each shard."""

    def find(shard: ShardEntry) -> int | None:
        uids = read_table(table_url(folder, shard.name), ["uid"])["uid"]
        rows = pc.indices_nonzero(pc.equal(uids, uid)).to_pylist()
        if len(rows) > 1 and manifest.step != "curated":
            status = read_table(table_url(folder, shard.name), ["status"])["status"]
            rows.sort(key=lambda row: (status[row].as_py() != "success", row))
        return rows[0] if rows else None

    dropped: tuple[str, int] | None = None
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for shard, row in zip(manifest.shards, pool.map(find, manifest.shards), strict=True):
            if row is None:
                continue
            if manifest.step == "curated" or _has_image(folder, shard.name, row):
                return shard.name, row
            dropped = dropped or (shard.name, row)
    return dropped


def _has_image(folder: str, shard_name: str, row: int) -> bool:
    status: pa.ChunkedArray = read_table(table_url(folder, shard_name), ["status"])["status"]
    return bool(status[row].as_py() == "success")


def _verdict(found: dict[str, Any]) -> str:
    """All data sets with the sample and all steps that dropped it; a selection does not repeat earlier steps."""
    sentences: list[str] = []
    earlier = set()
    for key, row in found.items():
        if key.startswith("curated/"):
            sentences.append(f"in {key}: shard {row['shard']}, row {row['row']}, key {row['key']}")
        elif isinstance(row, dict) and (reason := row.get("drop_reason")):
            if not key.startswith("selections/"):
                earlier.add(reason)
            elif reason in earlier:
                continue
            sentences.append(f"dropped by {key}: {reason}{_because_of(row)}")
    return "; ".join(sentences) or "kept so far; not in a curated data set yet"


def _because_of(row: dict[str, Any]) -> str:
    """The other image of the decision, if there is one."""
    if row.get("duplicate_of"):
        return f" ({row['duplicate_of']} is kept instead)"
    return f" (near {row['evaluation_image']})" if row.get("evaluation_image") else ""
