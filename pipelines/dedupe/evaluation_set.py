"""Hashes of the images of an evaluation set: a raw folder (from its tables), tars, or a folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.buckets import Hashes
from pipelines.dedupe.slim import THUMBNAIL_BYTES
from pipelines.hashes import hash_pixels
from pipelines.run_step import run_shards
from schemas import storage
from schemas.errors import InputError, SampleError
from schemas.image_decode import decode_rgb
from schemas.manifest import is_complete, load_manifest, resolve, table_url
from schemas.sample import read_table
from schemas.shard import IMAGE_EXTENSIONS, ShardReader, index_tar

FILES_PER_TASK = 500


@dataclass(frozen=True)
class EvaluationImages:
    """What is compared of each image."""

    name: list[str]  # file, tar and member, or uid
    phash: Hashes
    thumbnail: npt.NDArray[np.uint8]  # [images, 192]


def is_raw(path: str) -> bool:
    """True for a raw folder of ours, or its parent with a LATEST."""
    return is_complete(path) or storage.exists(storage.join(path, "LATEST"))


def fingerprint_of(path: str) -> str:
    """Changes when the set does. Raises InputError where nothing is there."""
    return load_manifest(resolve(path)).hash() if is_raw(path) else storage.fingerprint(path)


def read_evaluation_set(path: str) -> EvaluationImages:
    """Hashes of all images of a set, in the order of their names. Raises InputError where it has none."""
    if is_raw(path):
        folder = resolve(path)
        names = [shard.name for shard in load_manifest(folder).shards]
        parts = run_shards("dedupe: evaluation set", partial(_of_table, folder), names)
    else:
        files = listed_images(path)
        tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
        parts = run_shards("dedupe: evaluation set", partial(_of_files, path), tasks)
    images = EvaluationImages(
        [name for part in parts for name in part.name],
        np.concatenate([np.empty(0, np.uint64), *(part.phash for part in parts)]),
        np.concatenate([np.empty((0, THUMBNAIL_BYTES), np.uint8), *(part.thumbnail for part in parts)]),
    )
    if not images.name:
        raise InputError(f"dedupe.decontaminate: {path} holds no images (a raw folder, tars or image files)")
    return images


def listed_images(path: str) -> list[str]:
    """Tars and image files that a path, folder or glob names."""
    return [url for url in storage.expand(path) if _extension(url) in (*IMAGE_EXTENSIONS, "tar")]


def _extension(url: str) -> str:
    return url.rpartition(".")[2].lower()


def _of_table(folder: str, name: str) -> EvaluationImages:
    table = read_table(table_url(folder, name), ["uid", "phash", "thumbnail"])
    rows = [row for row in table.to_pylist() if row["phash"] is not None and row["thumbnail"] is not None]
    return _pack([(row["uid"], row["phash"], row["thumbnail"]) for row in rows])


def _of_files(base: str, files: list[str]) -> EvaluationImages:
    """Images that cannot be decoded are left out: no training image can equal their pixels."""
    found = []
    for name, data in images_in(files):
        try:
            hashes = hash_pixels(decode_rgb(data))
        except SampleError:
            continue
        found.append((name.removeprefix(base).lstrip("/"), hashes.phash, hashes.thumbnail))
    return _pack(found)


def images_in(files: list[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image of some files and tars."""
    for url in files:
        if _extension(url) != "tar":
            yield url, storage.read_bytes(url)
            continue
        reader = ShardReader(url)
        for member in index_tar(url):
            if member.extension in IMAGE_EXTENSIONS:
                yield f"{url}/{member.key}", reader.read(member.place.offset, member.place.num_bytes)
        reader.close()


def _pack(rows: list[tuple[str, int, bytes]]) -> EvaluationImages:
    return EvaluationImages(
        [name for name, _, _ in rows],
        np.array([phash for _, phash, _ in rows], np.uint64),
        np.frombuffer(b"".join(thumbnail for _, _, thumbnail in rows), np.uint8).reshape(-1, THUMBNAIL_BYTES),
    )
