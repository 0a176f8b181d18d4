"""The tar of one raw shard: members in row order, built in a scratch file and then put."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pairloom.pipelines.images.decoder_process import SpooledImage
from pairloom.pipelines.raw.table import PlacedImage
from pairloom.pipelines.sources.source import SourceRow
from pairloom.schemas.data_set.json_values import json_bytes
from pairloom.schemas.data_set.shard import ShardWriter
from pairloom.schemas.storage import storage


def work_folder(folder: str, name: str) -> str | None:
    """The folder for scratch files: that of the shard, so that a rename suffices; None: the system's folder."""
    if not storage.is_local(folder):
        return None
    path = os.path.dirname(storage.local_path(storage.join(folder, name)))
    os.makedirs(path, exist_ok=True)
    return path


def add_sample(
    writer: ShardWriter, key: str, row: SourceRow, uid: str, spooled: SpooledImage, spool: IO[bytes]
) -> PlacedImage:
    """Append one sample to the tar."""
    image = spooled.image
    fields = {
        "uid": uid,
        "key": key,
        "url": row.url,
        "caption": row.caption,
        "width": image.width,
        "height": image.height,
        "original_width": image.original_width,
        "original_height": image.original_height,
        "sha256": image.sha256,
        **row.kept,
    }
    members = {
        image.extension: os.pread(spool.fileno(), spooled.byte_range.num_bytes, spooled.byte_range.offset),
        "txt": (row.caption or "").encode(),
        "json": json_bytes(fields),
    }
    return PlacedImage(key, image, writer.add(key, members)[image.extension])


@contextmanager
def scratch_file(folder: str, name: str) -> Iterator[str]:
    """A temporary file beside the shard (remote: in the system's folder), removed at the end."""
    descriptor, path = tempfile.mkstemp(".tmp", f".{storage.name_of(name)}.", work_folder(folder, name))
    os.close(descriptor)
    os.chmod(path, 0o644)
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def put_tar(folder: str, name: str, scratch: str, sha256: str) -> str | None:
    """Put the tar. Returns its URL if it does not have the plain name.

    A local rename is atomic. On object storage two attempts could mix: there the name contains the hash of the
    content, and the table names its tar.
    """
    if not storage.is_local(folder):
        return put_named_tar(folder, name, scratch, sha256)
    with storage.build_locally(storage.join(folder, f"{name}.tar")) as path:
        os.replace(scratch, path)
    return None


def put_named_tar(folder: str, name: str, scratch: str, sha256: str) -> str:
    """Put a tar whose name contains its hash. Returns its URL; local ones are relative to `folder`."""
    below = f"{name}-{sha256[:8]}.tar"
    target = storage.join(folder, below)
    with storage.build_locally(target) as path:
        os.replace(scratch, path)
    return below if storage.is_local(folder) else target
