"""Look at what the steps have written, without Ray: a root, one data set, or everything about one sample."""

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
_NOT_SHOWN = {"thumbnail", "phash", "pixel_hash"}  # bytes, and numbers that say nothing to people


def inspect(path: str) -> dict[str, Any]:
    """Counts, sizes, drop reasons and a few samples of a data set; the funnel of a root. Raises InputError."""
    if any(storage.exists(storage.join(path, step)) for step in STEP_FOLDERS) and not is_complete(path):
        return _inspect_root(path)
    folder = resolve(path)
    manifest = load_manifest(folder)
    return {**_summary(folder, manifest), "details": dict(manifest.details), "samples": _samples(folder, manifest)}


def _inspect_root(root: str) -> dict[str, Any]:
    """Every newest data set below a root, and how many samples are left after each step."""
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
    """Step, name and folder of the newest complete data sets, in the order of the walk."""
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
    """The first few samples, kept ones where the table says which."""
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
    """Every step's decision about one sample, and the values that decided. Raises InputError for an unknown uid."""
    found: dict[str, Any] = {"uid": uid}
    places: dict[str, tuple[str, int]] = {}  # of each raw data set, by its manifest hash
    for step, name, folder in _newest(root):
        manifest = load_manifest(folder)
        if step in ("raw", "curated"):
            place = find_uid(folder, manifest, uid)
            if step == "raw" and place is not None:
                places[manifest.hash()] = place
        else:
            place = places.get(manifest.parents[0])
        if place is not None:
            row = _shown(read_table(table_url(folder, place[0])).slice(place[1], 1).to_pylist()[0])
            found[f"{step}/{name}"] = {"folder": folder, "shard": place[0], "row": place[1], **row}
    if not places:
        raise InputError(f"{root}: no sample has the uid {uid}")
    return {**found, "verdict": _verdict(found)}


def find_uid(folder: str, manifest: Manifest, uid: str) -> tuple[str, int] | None:
    """Shard and row of a uid: the row with an image where duplicate rows share it. Reads one column of each shard."""

    def look(shard: ShardEntry) -> int | None:
        uids = read_table(table_url(folder, shard.name), ["uid"])["uid"]
        rows = pc.indices_nonzero(pc.equal(uids, uid)).to_pylist()
        if len(rows) > 1 and manifest.step != "curated":
            status = read_table(table_url(folder, shard.name), ["status"])["status"]
            rows.sort(key=lambda row: (status[row].as_py() != "success", row))
        return rows[0] if rows else None

    dropped: tuple[str, int] | None = None
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for shard, row in zip(manifest.shards, pool.map(look, manifest.shards), strict=True):
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
    """Every data set that has the sample and every step that dropped it; a selection repeats no earlier step."""
    told: list[str] = []
    earlier = set()
    for key, row in found.items():
        if key.startswith("curated/"):
            told.append(f"in {key}: shard {row['shard']}, row {row['row']}, key {row['key']}")
        elif isinstance(row, dict) and (reason := row.get("drop_reason")):
            if not key.startswith("selections/"):
                earlier.add(reason)
            elif reason in earlier:
                continue
            told.append(f"dropped by {key}: {reason}{_because_of(row)}")
    return "; ".join(told) or "kept so far; not in a curated data set yet"


def _because_of(row: dict[str, Any]) -> str:
    """The other image that decided, where there is one."""
    if row.get("duplicate_of"):
        return f" ({row['duplicate_of']} is kept instead)"
    return f" (near {row['evaluation_image']})" if row.get("evaluation_image") else ""
