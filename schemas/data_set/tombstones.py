"""Tombstones: opt-out requests of a root, kept forever so that recalled samples never return.

`<root>/tombstones/<sha16>.json` is one list of one kind, named by its content: `uids` and `domains` as given, `urls` as
sha256 of the clean URL, `images` as sha256 of the received bytes. URLs are stored hashed, so that the opt-out list does
not itself publish them. A recall also writes the uids that it found, so that readers of curated shards need `uids`
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

FORMAT_VERSION = 1
FOLDER = "tombstones"
KINDS = ("uids", "urls", "domains", "images")


def put_tombstone(root: str, kind: str, values: Iterable[str]) -> str | None:
    """Write one list. Returns its name, or None for an empty list. Repeating a list writes nothing."""
    chosen = sorted(set(values))
    if not chosen:
        return None
    data = json.dumps({"format_version": FORMAT_VERSION, "kind": kind, "values": chosen}, indent=1).encode()
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.json"
    storage.put_if_absent(storage.join(root, FOLDER, name), data)
    return name


def tombstone_names(root: str) -> tuple[str, ...]:
    """Names of the lists of a root, sorted."""
    names = (storage.name_of(url) for url in storage.list_files(storage.join(root, FOLDER)))
    return tuple(sorted(name for name in names if name.endswith(".json") and not name.startswith(".")))


@lru_cache(maxsize=4)
def load_tombstones(root: str, names: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """All values by kind. `names`: tuple of list names; the content of a list never changes. Raises InputError."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name in names:
        url = storage.join(root, FOLDER, name)
        try:
            fields = json.loads(storage.read_text(url))
            kind, values, version = fields["kind"], fields["values"], fields["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{url}: not a tombstone list: {error}; restore it") from error
        if version > FORMAT_VERSION or kind not in found:
            raise InputError(f"{url}: written by a newer pairloom (format {version}, kind {kind}); upgrade")
        found[kind].update(values)
    return {kind: frozenset(values) for kind, values in found.items()}


def recalled_uids(folder: str) -> frozenset[str]:
    """Uids that readers of a data set must skip: tombstones of its root, and of its own folder if it is a copy."""
    uids: frozenset[str] = frozenset()
    for root in filter(None, (folder, root_of(folder))):
        names = tombstone_names(root)
        if names:
            uids |= load_tombstones(root, names)["uids"]
    return uids
