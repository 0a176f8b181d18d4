"""`pairloom gc`: remove unreferenced results below a root. Takes seconds, without Ray.

Kept are the results named by `<step>/<name>/LATEST`, the `keep` newest of each name, the data of training runs, and
all parents of these. Removed are:

- other complete results,
- unfinished results of a name with a newer complete result (others may still be resumed),
- in kept results: tars that no manifest names, temporary files, spill and staging folders of killed commands.

A name whose LATEST changed within the last `min_age_h` hours keeps all its results: a training run may have just
started to read the previous one. gc does not run while another command holds a lock of the root (root_lock.py).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pairloom.pipelines.engine.root_lock import exclusive_lock
from pairloom.pipelines.engine.step_folder import latest_folder
from pairloom.schemas.data_set.generations import load_generations, read_head
from pairloom.schemas.data_set.manifest import load_manifest, tar_url
from pairloom.schemas.data_set.result_path import STEP_FOLDERS, ResultPath
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import listing, storage

LEFTOVERS = ("spill", "staged", "rewrite")  # a step removes these folders at its end


@dataclass(frozen=True)
class Result:
    """One `<root>/<step>/<name>/<hash8>`."""

    step: str
    name: str
    url: str
    head: dict[str, Any] | None  # manifest.json; None: not complete
    is_latest: bool


@dataclass(frozen=True)
class Garbage:
    """A folder or file to remove."""

    url: str
    why: str
    num_files: int
    num_bytes: int


def collect_garbage(
    root: str, keep: int = 1, min_age_h: float = 24.0, used: Collection[str] = (), dry_run: bool = False
) -> dict[str, Any]:
    """Remove unreferenced results; `dry_run` only lists them. `used`: manifest hashes of data of training runs.

    Returns the removed folders and files with sizes, and those that are too recent. Raises InputError if there is no
    root, or if another command runs.
    """
    results = list(_results(root))
    if not results:
        raise InputError(f"{root}: no results of pairloom here; name the `root` of a curate recipe")
    with exclusive_lock(root):
        results = list(_results(root))  # again, now that no other command can write
        recent = _recent_names(results, min_age_h)
        referenced = _referenced(results, keep, used)
        unreferenced = [(result, why) for result in results if (why := _why_unreferenced(result, results, referenced))]
        waiting = [result.url for result, _ in unreferenced if (result.step, result.name) in recent]
        garbage = [_measure(result.url, why) for result, why in unreferenced if result.url not in waiting]
        for result in results:
            if result.head is not None and result.url in referenced:
                garbage += _leftovers(result)
        for one in garbage if not dry_run else ():
            _remove(one.url)
    return {
        "root": root,
        "dry_run": dry_run,
        "garbage": [asdict(one) for one in garbage],
        "num_bytes": sum(one.num_bytes for one in garbage),
        "waiting": waiting,
        "num_kept": len(results) - len(unreferenced),
    }


def _results(root: str) -> Iterator[Result]:
    for step in STEP_FOLDERS:
        for parent in storage.list_files(storage.join(root, step)):
            name = storage.name_of(parent)
            latest = latest_folder(root, step, name)
            for url in storage.list_files(parent):
                if storage.name_of(url) != "LATEST" and not storage.name_of(url).startswith("."):
                    is_latest = latest is not None and storage.name_of(latest) == storage.name_of(url)
                    yield Result(step, name, url, read_head(url), is_latest)


def _recent_names(results: list[Result], min_age_h: float) -> set[tuple[str, str]]:
    """Names whose LATEST changed recently."""
    oldest = time.time() - 3600 * min_age_h
    names = {
        (result.step, result.name): path.latest_url
        for result in results
        if (path := ResultPath.parse(result.url)) is not None
    }
    return {name for name, url in names.items() if storage.exists(url) and storage.modified(url) > oldest}


def _referenced(results: list[Result], keep: int, used: Collection[str]) -> set[str]:
    """URLs of the results to keep: named ones and all their parents."""
    by_hash: dict[str, Result] = {}
    for result in results:
        if result.head is not None:
            by_hash |= {entry["hash"]: result for entry in load_generations(result.url)}
            by_hash |= {result.head["hash"]: result, result.head["recipe_hash"]: result}
    todo = [result for result in results if result.is_latest]
    todo += [by_hash[one] for one in used if one in by_hash]
    if keep > 1:
        for name in {(result.step, result.name) for result in results}:
            todo += _newest(results, name)[:keep]
    referenced: set[str] = set()
    while todo:
        result = todo.pop()
        if result.url not in referenced:
            referenced.add(result.url)
            parents = result.head["parents"] if result.head is not None else []
            todo += [by_hash[parent] for parent in parents if parent in by_hash]
    return referenced


def _newest(results: list[Result], name: tuple[str, str]) -> list[Result]:
    """The complete results of a name, newest first."""
    complete = [result for result in results if (result.step, result.name) == name and result.head is not None]
    return sorted(complete, key=lambda result: (result.is_latest, _finished(result)), reverse=True)


def _finished(result: Result) -> float:
    return storage.modified(storage.join(result.url, "manifest.json"))


def _why_unreferenced(result: Result, results: list[Result], referenced: set[str]) -> str | None:
    """Why a result is removed; None: it is kept."""
    if result.url in referenced:
        return None
    if result.head is not None:
        return "unreferenced"
    last_write = max((storage.time_of(info) for info in listing.expand_with_info(result.url).values()), default=0.0)
    later = [other for other in _newest(results, (result.step, result.name)) if _finished(other) > last_write]
    return "unfinished, with a newer complete result" if later else None


def _measure(url: str, why: str) -> Garbage:
    sizes = [info["size"] for info in listing.expand_with_info(url).values()]
    return Garbage(url, why, len(sizes), sum(sizes))


def _leftovers(result: Result) -> Iterator[Garbage]:
    """Files of killed commands in a result that is kept."""
    if storage.exists(storage.join(result.url, "rewrite", "commit.json")):
        return  # the next curate or recall finishes the rewrite
    existing = {storage.name_of(url): url for url in storage.list_files(result.url)}
    for name in LEFTOVERS:
        if name in existing:
            yield _measure(existing[name], "left by a killed command")
    manifest = load_manifest(result.url)
    named = {storage.name_of(tar_url(result.url, shard)) for shard in manifest.shards}
    for part in sorted({shard.name.partition("/")[0] for shard in manifest.shards}):
        for url in storage.list_files(storage.join(result.url, part)):
            name = storage.name_of(url)
            if name.startswith(".") and name.endswith(".tmp"):
                yield _measure(url, "incomplete file")
            elif name.endswith(".tar") and name not in named:
                yield _measure(url, "tar without a manifest entry")


def _remove(url: str) -> None:
    """Remove a folder or file; the manifest first, so that a partly removed folder never counts as complete."""
    storage.remove(storage.join(url, "manifest.json"))
    storage.remove(url)
