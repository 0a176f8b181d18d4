"""Hashes of the images of an evaluation set: a raw folder, tars, or a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming256 import Hashes256, unpack_hashes
from pairloom.pipelines.dedupe.sample_records import THUMBNAIL_BYTES
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.images.hashes import hash_pixels, phash256
from pairloom.pipelines.images.image_sets import Listed, RawTar, cut_tasks, images_in, images_of_raw, listed_images
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.images.decode import decode_rgb


@dataclass(frozen=True)
class EvaluationImages:
    """The compared values of each image."""

    name: list[str]  # file, tar and member, or uid
    phash: Hashes
    thumbnail: npt.NDArray[np.uint8]  # [images, 192]
    phash256: Hashes256 | None = None  # None: no rule compares it
    features: npt.NDArray[np.float32] | None = None  # [images, D], of length one; None: no rule compares them


def read_evaluation_set(path: str, wants_256: bool = False) -> EvaluationImages:
    """Hashes of all images of a set, sorted by name. Raises InputError if it has no images."""
    chunks = run_shards("dedupe: evaluation set", partial(_read_chunk, path, wants_256), cut_tasks(listed_images(path)))
    images = EvaluationImages(
        [name for chunk in chunks for name in chunk.name],
        np.concatenate([np.empty(0, np.uint64), *(chunk.phash for chunk in chunks)]),
        np.concatenate([np.empty((0, THUMBNAIL_BYTES), np.uint8), *(chunk.thumbnail for chunk in chunks)]),
        np.concatenate([chunk.phash256 for chunk in chunks if chunk.phash256 is not None])
        if wants_256 and chunks
        else None,
    )
    if not images.name:
        raise InputError(f"dedupe.decontaminate: {path} holds no images; use a raw folder, tars or image files")
    return images


def _read_chunk(base: str, wants_256: bool, files: list[Listed]) -> EvaluationImages:
    if isinstance(files[0], RawTar):
        return _of_raw(files[0], wants_256)
    return _of_files(base, wants_256, files)


def _of_raw(part: RawTar, wants_256: bool) -> EvaluationImages:
    """From the raw table; only 256-bit hashes need the images."""
    table = read_table(table_url(part.folder, part.shard.name), ["uid", "status", "phash", "thumbnail"])
    rows = [row for row in table.to_pylist() if row["status"] == STATUS_SUCCESS]
    if any(row["phash"] is None or row["thumbnail"] is None for row in rows):
        raise InputError(f"{part.folder}: {part.shard.name} has images without a phash or a thumbnail; ingest it again")
    return EvaluationImages(
        [row["uid"] for row in rows],
        np.array([row["phash"] for row in rows], np.uint64),
        np.frombuffer(b"".join(row["thumbnail"] for row in rows), np.uint8).reshape(-1, THUMBNAIL_BYTES),
        unpack_hashes(b"".join(phash256(decode_rgb(data)) for _, data in images_of_raw(part))) if wants_256 else None,
    )


def _of_files(base: str, wants_256: bool, files: list[Listed]) -> EvaluationImages:
    """From image files, without images that cannot be decoded: no sample can have their pixels."""
    names, hashes, hashes256 = [], [], []
    for name, data in images_in(files):
        try:
            pixels = decode_rgb(data)
        except SampleError:
            continue
        names.append(name.removeprefix(base).lstrip("/"))
        hashes.append(hash_pixels(pixels))
        if wants_256:
            hashes256.append(phash256(pixels))
    return EvaluationImages(
        names,
        np.array([one.phash for one in hashes], np.uint64),
        np.frombuffer(b"".join(one.thumbnail for one in hashes), np.uint8).reshape(-1, THUMBNAIL_BYTES),
        unpack_hashes(b"".join(hashes256)) if wants_256 else None,
    )
