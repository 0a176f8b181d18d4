"""Folders, tars and raw data sets as lists of images, split into tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pairloom.schemas.data_set.manifest import (
    ShardEntry,
    entry_of_table,
    is_complete,
    load_manifest,
    resolve,
    table_url,
    tar_url,
)
from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS, ShardReader
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.data_set.tar_members import index_tar
from pairloom.schemas.storage import listing, storage
from pairloom.schemas.storage.digests import fingerprint

FILES_PER_TASK = 500


@dataclass(frozen=True)
class RawTar:
    """The images of one shard of a raw folder."""

    folder: str
    shard: ShardEntry


Listed: TypeAlias = str | RawTar


def is_raw(path: str) -> bool:
    """Whether a path is a raw folder of pairloom, or its parent with a LATEST."""
    return is_complete(path) or storage.exists(storage.join(path, "LATEST"))


def fingerprint_of(path: str) -> str:
    """A fingerprint of the set's content. Raises InputError if there is nothing at `path`."""
    return load_manifest(resolve(path)).hash() if is_raw(path) else fingerprint(path)


def cut_tasks(listed: Sequence[Listed]) -> list[list[Listed]]:
    """One task per tar, and one per `FILES_PER_TASK` image files."""
    files = [one for one in listed if isinstance(one, str) and _extension(one) != "tar"]
    tasks: list[list[Listed]] = [[one] for one in listed if isinstance(one, RawTar) or _extension(one) == "tar"]
    return tasks + [list(files[start : start + FILES_PER_TASK]) for start in range(0, len(files), FILES_PER_TASK)]


def listed_images(path: str) -> list[Listed]:
    """The shards of a raw folder, or the tars and image files of a path, folder or glob."""
    if is_raw(path):
        folder = resolve(path)
        return [RawTar(folder, shard) for shard in load_manifest(folder).shards if shard.num_samples]
    return [url for url in listing.expand(path) if _extension(url) in (*IMAGE_EXTENSIONS, "tar")]


def _extension(url: str) -> str:
    return url.rpartition(".")[2].lower()


def images_in(files: Sequence[Listed]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each image in files and tars; images of a raw folder are named by uid."""
    for url in files:
        if isinstance(url, RawTar):
            yield from images_of_raw(url)
            continue
        if _extension(url) != "tar":
            yield url, storage.read_bytes(url)
            continue
        reader = ShardReader(url)
        for member in index_tar(url):
            if member.extension in IMAGE_EXTENSIONS:
                yield f"{url}/{member.key}", reader.read(member.byte_range.offset, member.byte_range.num_bytes)
        reader.close()


def images_of_raw(tar: RawTar) -> Iterator[tuple[str, bytes]]:
    """The kept images of a raw shard, without dropped and recalled rows."""
    table = read_table(table_url(tar.folder, tar.shard.name), ["uid", "status", "offset", "num_bytes"])
    reader = ShardReader(tar_url(tar.folder, entry_of_table(table, tar.shard)))
    for row in table.to_pylist():
        if row["status"] == STATUS_SUCCESS:
            yield row["uid"], reader.read(row["offset"], row["num_bytes"])
    reader.close()
