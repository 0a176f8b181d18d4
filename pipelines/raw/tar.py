"""The tar of one raw shard: members in the order of the rows, and how it gets to its place."""

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
from pairloom.schemas.data_set.shard import ByteRange, ShardWriter
from pairloom.schemas.storage import storage


def work_folder(folder: str, name: str) -> str | None:
    """Scratch files lie where the shard will lie, so that a rename moves them; None: the system's own place."""
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
    place = writer.add(key, members)[image.extension]
    return PlacedImage(key, image, ByteRange(place.offset, place.num_bytes))


@contextmanager
def scratch_file(folder: str, name: str) -> Iterator[str]:
    """A file beside the shard (remote: in the system's own place) that is gone at the end."""
    descriptor, path = tempfile.mkstemp(".tmp", f".{storage.name_of(name)}.", work_folder(folder, name))
    os.close(descriptor)
    os.chmod(path, 0o644)
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def put_tar(folder: str, name: str, scratch: str, sha256: str) -> str | None:
    """Put the tar; returns its URL where that is not the plain name.

    A local rename is atomic. On object storage two attempts could mix: there the name carries the content, and the
    table names the tar that it belongs to.
    """
    if not storage.is_local(folder):
        return put_named_tar(folder, name, scratch, sha256)
    with storage.build_locally(storage.join(folder, f"{name}.tar")) as path:
        os.replace(scratch, path)
    return None


def put_named_tar(folder: str, name: str, scratch: str, sha256: str) -> str:
    """Put a tar that replaces another one; its name carries the content. Returns its URL, local ones below `folder`."""
    below = f"{name}-{sha256[:8]}.tar"
    target = storage.join(folder, below)
    with storage.build_locally(target) as path:
        os.replace(scratch, path)
    return below if storage.is_local(folder) else target
