"""Hashes of the images of an evaluation set: a raw folder, tars, or a folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.buckets import Hashes
from pipelines.dedupe.slim import THUMBNAIL_BYTES
from pipelines.dedupe.wide import WideHashes, unpack_hashes
from pipelines.hashes import hash_pixels, phash256
from pipelines.run_step import run_shards
from schemas import storage
from schemas.digests import fingerprint
from schemas.errors import InputError, SampleError
from schemas.image_decode import decode_rgb
from schemas.manifest import ShardEntry, entry_of_table, is_complete, load_manifest, resolve, table_url, tar_url
from schemas.sample import STATUS_SUCCESS, read_table
from schemas.shard import IMAGE_EXTENSIONS, ShardReader, index_tar

FILES_PER_TASK = 500


@dataclass(frozen=True)
class EvaluationImages:
    """What is compared of each image."""

    name: list[str]  # file, tar and member, or uid
    phash: Hashes
    thumbnail: npt.NDArray[np.uint8]  # [images, 192]
    phash256: WideHashes | None = None  # where a rule asks for it
    features: npt.NDArray[np.float32] | None = None  # [images, D], of length one; where a rule asks for them


@dataclass(frozen=True)
class RawTar:
    """The images of one shard of a raw folder."""

    folder: str
    shard: ShardEntry


Listed: TypeAlias = str | RawTar
"""What images come from: a file, a tar, or a shard of a raw folder."""


def is_raw(path: str) -> bool:
    """True for a raw folder of ours, or its parent with a LATEST."""
    return is_complete(path) or storage.exists(storage.join(path, "LATEST"))


def fingerprint_of(path: str) -> str:
    """Changes when the set does. Raises InputError where nothing is there."""
    return load_manifest(resolve(path)).hash() if is_raw(path) else fingerprint(path)


def read_evaluation_set(path: str, wants_256: bool = False) -> EvaluationImages:
    """Hashes of all images of a set, in the order of their names. Raises InputError where it has none."""
    parts = run_shards("dedupe: evaluation set", partial(_read_part, path, wants_256), cut_tasks(listed_images(path)))
    images = EvaluationImages(
        [name for part in parts for name in part.name],
        np.concatenate([np.empty(0, np.uint64), *(part.phash for part in parts)]),
        np.concatenate([np.empty((0, THUMBNAIL_BYTES), np.uint8), *(part.thumbnail for part in parts)]),
        np.concatenate([part.phash256 for part in parts if part.phash256 is not None]) if wants_256 and parts else None,
    )
    if not images.name:
        raise InputError(f"dedupe.decontaminate: {path} holds no images (a raw folder, tars or image files)")
    return images


def cut_tasks(listed: Sequence[Listed]) -> list[list[Listed]]:
    """Tars each for itself, image files by the hundreds."""
    files = [one for one in listed if isinstance(one, str) and _extension(one) != "tar"]
    tasks: list[list[Listed]] = [[one] for one in listed if isinstance(one, RawTar) or _extension(one) == "tar"]
    return tasks + [list(files[start : start + FILES_PER_TASK]) for start in range(0, len(files), FILES_PER_TASK)]


def listed_images(path: str) -> list[Listed]:
    """Shards of a raw folder, or the tars and image files that a path, folder or glob names."""
    if is_raw(path):
        folder = resolve(path)
        return [RawTar(folder, shard) for shard in load_manifest(folder).shards if shard.num_samples]
    return [url for url in storage.expand(path) if _extension(url) in (*IMAGE_EXTENSIONS, "tar")]


def _extension(url: str) -> str:
    return url.rpartition(".")[2].lower()


def _read_part(base: str, wants_256: bool, files: list[Listed]) -> EvaluationImages:
    if isinstance(files[0], RawTar):
        return _of_raw(files[0], wants_256)
    return _of_files(base, wants_256, files)


def _of_raw(part: RawTar, wants_256: bool) -> EvaluationImages:
    """From the table; only 256-bit hashes take the images, too."""
    table = read_table(table_url(part.folder, part.shard.name), ["uid", "status", "phash", "thumbnail"])
    rows = [row for row in table.to_pylist() if row["status"] == STATUS_SUCCESS]
    if any(row["phash"] is None or row["thumbnail"] is None for row in rows):
        raise InputError(f"{part.folder}: {part.shard.name} has images without a phash or a thumbnail")
    return EvaluationImages(
        [row["uid"] for row in rows],
        np.array([row["phash"] for row in rows], np.uint64),
        np.frombuffer(b"".join(row["thumbnail"] for row in rows), np.uint8).reshape(-1, THUMBNAIL_BYTES),
        unpack_hashes(b"".join(phash256(decode_rgb(data)) for _, data in _images_of_raw(part))) if wants_256 else None,
    )


def _of_files(base: str, wants_256: bool, files: list[Listed]) -> EvaluationImages:
    """Images that cannot be decoded are left out: no training image can equal their pixels."""
    names, hashes, wide = [], [], []
    for name, data in images_in(files):
        try:
            pixels = decode_rgb(data)
        except SampleError:
            continue
        names.append(name.removeprefix(base).lstrip("/"))
        hashes.append(hash_pixels(pixels))
        if wants_256:
            wide.append(phash256(pixels))
    return EvaluationImages(
        names,
        np.array([one.phash for one in hashes], np.uint64),
        np.frombuffer(b"".join(one.thumbnail for one in hashes), np.uint8).reshape(-1, THUMBNAIL_BYTES),
        unpack_hashes(b"".join(wide)) if wants_256 else None,
    )


def images_in(files: Sequence[Listed]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image of some files and tars; the uid names an image of a raw folder."""
    for url in files:
        if isinstance(url, RawTar):
            yield from _images_of_raw(url)
            continue
        if _extension(url) != "tar":
            yield url, storage.read_bytes(url)
            continue
        reader = ShardReader(url)
        for member in index_tar(url):
            if member.extension in IMAGE_EXTENSIONS:
                yield f"{url}/{member.key}", reader.read(member.place.offset, member.place.num_bytes)
        reader.close()


def _images_of_raw(part: RawTar) -> Iterator[tuple[str, bytes]]:
    """Images that a table lists: what was recalled since, or dropped, is none of them."""
    table = read_table(table_url(part.folder, part.shard.name), ["uid", "status", "offset", "num_bytes"])
    reader = ShardReader(tar_url(part.folder, entry_of_table(table, part.shard)))
    for row in table.to_pylist():
        if row["status"] == STATUS_SUCCESS:
            yield row["uid"], reader.read(row["offset"], row["num_bytes"])
    reader.close()
