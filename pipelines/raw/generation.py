"""Generations of a raw folder: its manifest is written by the first ingest, with a new segment, and after a rewrite.

A rewrite (a retry, a recall) replaces some shards of a complete folder:

    new tars beside the old -> new tables in `rewrite/<name>/` -> journal -> replace tables -> manifest -> clean up

A tar and a table cannot be replaced in one step, so rewritten tars are named by their content and every table names
its own tar. Before the journal exists, nothing changes for readers; after that, the next command finishes the rewrite.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from pairloom.pipelines.engine.step_folder import remove_scratch
from pairloom.pipelines.raw.table import PlacedImage, ShardResult, read_result
from pairloom.pipelines.raw.tar import put_named_tar, scratch_file
from pairloom.schemas.data_set.generations import note_generation, read_head
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, save_manifest, table_url, tar_url
from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS, ByteRange, ShardReader, ShardWriter
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.data_set.tar_members import Member, index_tar
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

NUM_THREADS = 16
FOLDER = "rewrite"

AddSample = Callable[[ShardWriter], PlacedImage]


@dataclass(frozen=True)
class Rewrite:
    """One replacement of shards, identified by its operation and the hash of the manifest before it."""

    folder: str
    operation: str  # retry | recall-<tombstones>
    base: str

    @property
    def staging(self) -> str:
        """The folder of the new tables."""
        return storage.join(self.folder, FOLDER, f"{self.operation}-{self.base[:8]}")

    def commit(self, names: Sequence[str]) -> None:
        """Turn the staged tables of these shards into the next generation of the folder."""
        journal = {"staging": self.staging.removeprefix(self.folder), "base": self.base, "shards": list(names)}
        storage.put_bytes(_journal_url(self.folder), json.dumps(journal, sort_keys=True).encode())
        finish_rewrite(self.folder)


def _journal_url(folder: str) -> str:
    return storage.join(folder, FOLDER, "commit.json")


def finish_rewrite(folder: str) -> None:
    """Finish a rewrite that was interrupted after its journal was written; does nothing if there is none."""
    if not storage.exists(_journal_url(folder)):
        return
    journal = json.loads(storage.read_text(_journal_url(folder)))
    head = read_head(folder)
    if head is None:
        raise InputError(
            f"{folder}: manifest.json was removed during a rewrite; restore it and run the same command again"
        )
    if head["hash"] == journal["base"]:
        staging = storage.join(folder, journal["staging"])
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(partial(_replace_table, folder, staging), journal["shards"]))
        save_generation(folder, head, collect_results(folder, shard_names_of(folder)), journal["shards"])
    _remove_garbage(folder, load_manifest(folder))
    storage.remove(storage.join(folder, FOLDER))


def shard_names_of(folder: str) -> list[str]:
    """Names of a complete folder's shards; works also if only shards.parquet of the manifest was written."""
    names: list[str] = read_table(storage.join(folder, "shards.parquet"), ["name"])["name"].to_pylist()
    return names


def _replace_table(folder: str, staging: str, name: str) -> None:
    storage.put_bytes(table_url(folder, name), storage.read_bytes(table_url(staging, name)))


def save_generation(
    folder: str, head: Mapping[str, Any], results: Sequence[ShardResult], changed: Sequence[str]
) -> None:
    """Write the manifest of these shards as generation 0, or as the generation after the existing one.

    `head` has name, step, recipe_hash, parents and details.
    """
    drop_counts: Counter[str] = Counter()
    for result in results:
        drop_counts.update(result.drop_counts)
    checksum = hashlib.sha256("\n".join(result.checksum for result in results).encode()).hexdigest()
    before = read_head(folder)
    manifest = Manifest(
        name=head["name"],
        step=head["step"],
        recipe_hash=head["recipe_hash"],
        parents=tuple(head["parents"]),
        shards=[result.entry for result in results],
        drop_counts=drop_counts,
        generation=before["generation"] + 1 if before is not None else 0,
        details={**head["details"], "checksum": checksum},
    )
    for part in sorted({result.entry.name.partition("/")[0] for result in results}):
        remove_scratch(storage.join(folder, part))
    note_generation(folder, manifest, changed)
    save_manifest(folder, manifest)


def collect_results(folder: str, names: Sequence[str]) -> list[ShardResult]:
    """The results of finished shards, read from their tables."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(partial(read_result, folder), names))


def _remove_garbage(folder: str, manifest: Manifest) -> None:
    """Remove old tars of the manifest's shards that it no longer names."""
    referenced = {storage.name_of(tar_url(folder, shard)) for shard in manifest.shards}
    shards = {storage.name_of(shard.name) for shard in manifest.shards}
    for part in sorted({shard.name.partition("/")[0] for shard in manifest.shards}):
        for url in storage.list_files(storage.join(folder, part)):
            name = storage.name_of(url)
            of_shard = name.removesuffix(".tar").partition("-")[0]
            if name.endswith(".tar") and of_shard in shards and name not in referenced:
                storage.remove(url)


class _OldTar:
    """The samples of a tar by key; a remote tar is copied first, because nearly all of it is read."""

    def __init__(self, url: str, scratch: str) -> None:
        if not storage.is_local(url):
            copy = f"{scratch}/{storage.name_of(url)}"
            storage.get_file(url, copy)
            url = copy
        self.reader = ShardReader(url)
        self._members: dict[str, list[Member]] = {}
        for member in index_tar(url):
            self._members.setdefault(member.key, []).append(member)

    def sample(self, key: str) -> dict[str, bytes]:
        """Extension -> bytes, in the order of the tar."""
        return {member.extension: self.reader.read(member.byte_range.offset, member.byte_range.num_bytes)
                for member in self._members[key]}  # fmt: skip


@contextmanager
def _open_old(folder: str, entry: ShardEntry) -> Iterator[_OldTar]:
    with TemporaryDirectory() as scratch:
        tar = _OldTar(tar_url(folder, entry), scratch)
        try:
            yield tar
        finally:
            tar.reader.close()


def rewrite_tar(
    folder: str, old: ShardEntry, keys: Sequence[str | None], new: Mapping[int, AddSample]
) -> tuple[ShardEntry, dict[int, int], dict[int, PlacedImage]]:
    """Write a shard's tar again, in row order: the samples with these keys (None: no sample) and new ones.

    `new` maps rows to functions that add a sample to a ShardWriter. Returns the entry, and by row the offsets of
    copied images and the new images.
    """
    offsets: dict[int, int] = {}
    placed: dict[int, PlacedImage] = {}
    with scratch_file(folder, old.name) as scratch:
        with ShardWriter(scratch) as writer, _open_old(folder, old) as tar:
            for row, key in enumerate(keys):
                if row in new:
                    placed[row] = new[row](writer)
                elif key is not None:
                    offsets[row] = _image_range(writer.add(key, tar.sample(key))).offset
        sha256 = writer.close()
        url = put_named_tar(folder, old.name, scratch, sha256)
    entry = replace(old, num_samples=writer.num_samples, num_bytes=writer.num_bytes, sha256=sha256, url=url)
    return entry, offsets, placed


def _image_range(ranges: Mapping[str, ByteRange]) -> ByteRange:
    return next(found for extension, found in ranges.items() if extension in IMAGE_EXTENSIONS)
