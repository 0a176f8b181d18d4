"""sha256 of files and folders in storage."""

from __future__ import annotations

import hashlib

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import listing, storage


def sha256_of(url: str) -> str:
    """sha256 of a file as hex; reads it in pieces."""
    digest = hashlib.sha256()
    with storage.open_read(url) as file:
        while piece := file.read(storage.COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(url: str) -> str:
    """Content fingerprint of a model folder or a file: sha256 over relative names and contents."""
    files = listing.expand(url)
    if not files:
        raise InputError(f"{url}: no such file or folder; check the path")
    digest = hashlib.sha256()
    for file in files:
        relative = file.removeprefix(url.rstrip("/"))
        digest.update(f"{relative}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def content_of(url: str, where: str) -> str:
    """sha256 of a file that the recipe field `where` names. Raises InputError if it does not exist."""
    if not storage.exists(url):
        raise InputError(f"{where}: {url}: no such file; check the path")
    return sha256_of(url)
