"""Reuse the columns of an earlier raw generation for shards that have not changed since.

The folder of a signal depends on the raw manifest's hash, so that a retry or a recall needs a new folder. But the
columns of a shard depend on that shard and the model alone, and `generations.json` lists the changed shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pairloom.pipelines.engine.step_folder import StepFolder
from pairloom.schemas.data_set.generations import load_generations
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.storage import storage

NUM_THREADS = 8


def reuse_columns(
    raw_folder: str, target: StepFolder, missing: Sequence[str], folder_for: Callable[[str], StepFolder]
) -> list[str]:
    """Copy missing shards of `target` from the newest earlier generation that was measured.

    `folder_for` returns the folder of the same signal for another raw manifest hash. Returns the copied shards.
    """
    entries = load_generations(raw_folder)
    hashes = [entry["hash"] for entry in entries]
    now = load_manifest(raw_folder).hash()
    changed: set[str] = set()
    for index in range(hashes.index(now) if now in hashes else 0, 0, -1):
        changed.update(entries[index]["changed"])
        old = folder_for(hashes[index - 1])
        if old.is_complete():
            available = {shard.name for shard in load_manifest(old.url).shards}
            names = [name for name in missing if name in available and name not in changed]
            _copy(old.url, target.url, names)
            return names
    return []


def _copy(old: str, new: str, names: Sequence[str]) -> None:
    """Copy shards; lists each folder of 1,000 shards once."""
    files: dict[str, list[str]] = {}
    for part in sorted({name.partition("/")[0] for name in names}):
        for url in storage.list_files(storage.join(old, part)):
            shard, _, rest = storage.name_of(url).partition(".")
            if rest.endswith(".npy"):
                files.setdefault(f"{part}/{shard}", []).append(f"{part}/{shard}.{rest}")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(lambda name: _copy_shard(old, new, name, files.get(name, [])), names))


def _copy_shard(old: str, new: str, name: str, features: Sequence[str]) -> None:
    """Copy features first, then the table, which marks a shard as done."""
    for file in features:
        storage.put_bytes(storage.join(new, file), storage.read_bytes(storage.join(old, file)))
    storage.put_bytes(table_url(new, name), storage.read_bytes(table_url(old, name)))
