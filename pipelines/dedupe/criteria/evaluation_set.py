"""Hashes of the images of an evaluation set: a raw folder, tars, or a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.hamming256 import WideHashes, unpack_hashes
from pairloom.pipelines.dedupe.sample_records import THUMBNAIL_BYTES
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.images.hashes import hash_pixels, phash256
from pairloom.pipelines.images.image_sets import Listed, RawTar, _images_of_raw, cut_tasks, images_in, listed_images
from pairloom.schemas.data_set.manifest import (
    table_url,
)
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.images.decode import decode_rgb


@dataclass(frozen=True)
class EvaluationImages:
    """What is compared of each image."""

    name: list[str]  # file, tar and member, or uid
    phash: Hashes
    thumbnail: npt.NDArray[np.uint8]  # [images, 192]
    phash256: WideHashes | None = None  # where a rule asks for it
    features: npt.NDArray[np.float32] | None = None  # [images, D], of length one; where a rule asks for them


"""What images come from: a file, a tar, or a shard of a raw folder."""


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
