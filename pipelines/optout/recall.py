"""`pairloom recall`: write opt-out requests as tombstones and apply them to every raw folder of the root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow.compute as pc

from pairloom.pipelines.engine.root_lock import shared_lock
from pairloom.pipelines.optout.apply import NUM_THREADS, apply_tombstones
from pairloom.pipelines.optout.rules import Rules, as_lists
from pairloom.pipelines.raw.generation import finish_rewrite
from pairloom.schemas.data_set.generations import folders_below, stale_lines
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.result_path import STEP_FOLDERS, ResultPath
from pairloom.schemas.data_set.tables import CURATED, read_table
from pairloom.schemas.data_set.tombstones import load_tombstones, put_tombstone, tombstone_names
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage


@dataclass
class Found:
    """The rows of one data set that a request names."""

    uids: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)  # sha256 of the received bytes
    num_rows: int = 0
    num_shards: int = 0


def recall(root: str, request: Rules, same_images: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Write the tombstones of a request and recall its rows. Returns counts, and the results that are stale now.

    `same_images` also recalls every row whose received image has the same bytes. `dry_run` only counts. An interrupted
    recall finishes when it is run again. Raises InputError for a root without raw data.
    """
    if not list(folders_below(root, "raw")) and not storage.exists(storage.join(root, "raw")):
        raise InputError(f"{root}: holds no raw data set; name the `root` of a curate recipe")
    with nullcontext() if dry_run else shared_lock(root, "recall"):
        return _recall(root, request, same_images, dry_run)


def _recall(root: str, request: Rules, same_images: bool, dry_run: bool) -> dict[str, Any]:
    raw_folders = list(folders_below(root, "raw"))
    curated_folders = list(folders_below(root, "curated"))
    if not dry_run:
        for folder in raw_folders:
            finish_rewrite(folder)
    if same_images:
        images = frozenset[str]().union(*(_find(folder, request, with_images=True).images for folder in raw_folders))
        request = Rules(request.uids, request.urls, request.domains, request.images | images)
    raw = {folder: _find(folder, request) for folder in raw_folders}
    curated = {folder: _find(folder, _with_uids(request, raw.values())) for folder in curated_folders}
    if not dry_run:
        _write_tombstones(root, request, _uids_of([*raw.values(), *curated.values()]))
        for folder in raw_folders:
            apply_tombstones(folder)
    return {
        "root": root,
        "dry_run": dry_run,
        "num_rows": sum(found.num_rows for found in raw.values()),
        "num_shards": sum(found.num_shards for found in raw.values()),
        "data_sets": {folder: _counts(found) for folder, found in (raw | curated).items() if found.num_rows},
        "unfinished": [] if dry_run else _unfinished(root, raw_folders),
        "tombstones": list(tombstone_names(root)),
        "stale": [f"{folder}: {line}" for folder in _downstream(root) for line in stale_lines(folder)],
    }


def _counts(found: Found) -> dict[str, int]:
    return {"num_rows": found.num_rows, "num_shards": found.num_shards}


def _uids_of(found: Iterable[Found]) -> frozenset[str]:
    return frozenset[str]().union(*(one.uids for one in found))


def _with_uids(request: Rules, found: Iterable[Found]) -> Rules:
    return Rules(request.uids | _uids_of(found), request.urls, request.domains, request.images)


def _find(folder: str, rules: Rules, with_images: bool = False) -> Found:
    """The rows of one data set that the rules name and that are not recalled yet; reads a few columns."""
    shards = [shard.name for shard in load_manifest(folder).shards]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return _sum(pool.map(partial(_find_in_shard, folder, rules, with_images), shards))


def _find_in_shard(folder: str, rules: Rules, with_images: bool, name: str) -> Found:
    result = ResultPath.parse(folder)
    is_raw = result is not None and result.step == "raw"
    columns = list(dict.fromkeys([*rules.columns, *(["sha256"] if with_images else [])]))
    table = read_table(table_url(folder, name), columns if is_raw else [one for one in columns if one in CURATED.names])
    chosen = table.filter(rules.mask(table))
    images = set(pc.drop_null(chosen["sha256"]).to_pylist()) if with_images else set()
    return Found(set(chosen["uid"].to_pylist()), images, chosen.num_rows, int(chosen.num_rows > 0))


def _sum(found: Iterable[Found]) -> Found:
    total = Found()
    for one in found:
        total.uids |= one.uids
        total.images |= one.images
        total.num_rows += one.num_rows
        total.num_shards += one.num_shards
    return total


def _write_tombstones(root: str, request: Rules, found: frozenset[str]) -> None:
    """Write the tombstones, derived ones first: an interrupted recall is repeated with the request itself."""
    known = load_tombstones(root, tombstone_names(root))
    lists = dict(as_lists(request))
    put_tombstone(root, "images", lists.pop("images") - known["images"])
    put_tombstone(root, "uids", found - known["uids"] - lists["uids"])
    for kind, values in lists.items():
        put_tombstone(root, kind, values)


def _unfinished(root: str, complete: Iterable[str]) -> list[str]:
    """Raw folders whose first ingest is unfinished: it applies the request when it is resumed."""
    there = [folder for name in storage.list_files(storage.join(root, "raw")) for folder in storage.list_files(name)]
    return [url for url in there if url not in set(complete) and storage.exists(storage.join(url, "segments"))]


def _downstream(root: str) -> Iterator[str]:
    for step in STEP_FOLDERS[1:]:
        yield from folders_below(root, step)
