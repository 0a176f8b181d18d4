"""Generations of raw data sets, and whether results made from them are stale.

A retry, a recall and a new segment write a new manifest generation of the same raw folder. Its `generations.json` has
the hashes of earlier generations; results record the hash of their raw data set as their first parent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pairloom.schemas.data_set.manifest import Manifest
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.storage import storage


def read_head(folder: str) -> dict[str, Any] | None:
    """The content of manifest.json, without the shards; None if the folder is not complete."""
    url = storage.join(folder, "manifest.json")
    head: dict[str, Any] | None = json.loads(storage.read_text(url)) if storage.exists(url) else None
    return head


def load_generations(folder: str) -> list[dict[str, Any]]:
    """`generation`, `hash` and `changed` shards of all generations, oldest first; empty with only one."""
    url = storage.join(folder, "generations.json")
    entries: list[dict[str, Any]] = json.loads(storage.read_text(url)) if storage.exists(url) else []
    return entries


def note_generation(folder: str, manifest: Manifest, changed: Sequence[str]) -> None:
    """Add a generation to generations.json. Call it before the manifest is saved."""
    before = read_head(folder)
    if before is None or before["hash"] == manifest.hash():
        return
    entries = load_generations(folder) or [
        {"generation": before["generation"], "hash": before["hash"], "changed": []},
    ]
    if entries[-1]["hash"] != manifest.hash():
        entries.append({"generation": manifest.generation, "hash": manifest.hash(), "changed": sorted(changed)})
        text = json.dumps(entries, sort_keys=True, indent=1)
        storage.put_bytes(storage.join(folder, "generations.json"), text.encode())


def folders_below(root: str, step: str) -> Iterator[str]:
    """The complete folders `<root>/<step>/<name>/<hash8>`."""
    for data_set in storage.list_files(storage.join(root, step)):
        for folder in storage.list_files(data_set):
            if not storage.name_of(folder).startswith(".") and read_head(folder) is not None:
                yield folder


def stale_lines(folder: str) -> list[str]:
    """Messages about a data set whose raw shards have a newer generation; empty if it is up to date."""
    head = read_head(folder)
    root = root_of(folder)
    if head is None or head["step"] == "raw" or not head["parents"] or root is None:
        return []
    for raw in folders_below(root, "raw"):
        now = read_head(raw)
        for entry in load_generations(raw):
            if now is not None and entry["hash"] == head["parents"][0] != now["hash"]:
                return [
                    f"stale: raw/{now['name']} is at generation {now['generation']}, "
                    f"this was made from generation {entry['generation']}"
                ]
    return []


def run_stale_lines(run_dir: str) -> list[str]:
    """`stale_lines` of a training run, by the manifest hashes in its newest checkpoint."""
    lines = []
    for data in data_of_run(run_dir):
        folder = _folder_with(data["path"], data["manifest_hash"])
        lines += [f"{line} ({data['path']})" for line in stale_lines(folder)] if folder else []
    return lines


def data_of_run(run_dir: str) -> list[dict[str, Any]]:
    """`path` and `manifest_hash` of each data set of a run, from its newest checkpoint or its export."""
    urls = [storage.join(url, "state.json") for url in storage.list_files(storage.join(run_dir, "checkpoints"))]
    for url in [*reversed(urls), storage.join(run_dir, "export", "provenance.json")]:
        if storage.exists(url):
            data: list[dict[str, Any]] = json.loads(storage.read_text(url)).get("data") or []
            return data
    return []


def _folder_with(path: str, manifest_hash: str | None) -> str | None:
    """The folder with this manifest: `path` itself or a result below it; None if there is none."""
    for folder in [path, *storage.list_files(path)]:
        head = read_head(folder)
        if head is not None and head["hash"] == manifest_hash:
            return folder
    return None
