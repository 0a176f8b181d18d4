"""Copy runs between a local folder and a URL.

A run with a URL is written to a local folder; each complete checkpoint is then uploaded. A run resumes, on any machine,
from the complete checkpoints at the URL; work after the newest one is repeated. Machines share only the URL, not the
local folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pairloom.schemas.errors import StorageError
from pairloom.schemas.local_cache import cache_folder
from pairloom.schemas.storage import listing, storage

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
RUN_FILES = ("recipe.yaml", "metrics.jsonl", "evaluations.jsonl", "tokenizer", "tb")
"""Files and folders of a run apart from checkpoints and the export."""


def local_folder(url: str) -> Path:
    """The local folder, in the cache, of the run at `url`."""
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]
    return cache_folder() / "runs" / f"{storage.name_of(url)}-{digest}"


@dataclass(frozen=True)
class RemoteCopy:
    """A local run folder and the URL of its copy."""

    local: Path
    url: str

    def fetch_run(self) -> None:
        """Update the local folder to the run at the URL.

        Downloads the run's files and its newest complete checkpoint, and removes local checkpoints that differ from the
        URL's; without a recipe.yaml at the URL, removes the whole local folder. Raises StorageError.
        """
        there = {file.removeprefix(f"{self._base()}/") for file in self._files("")}
        if "recipe.yaml" not in there:
            shutil.rmtree(self.local, ignore_errors=True)
        complete = sorted(
            name.split("/")[1]
            for name in there
            if name.startswith(f"{CHECKPOINTS}/") and name.endswith(f"/{MANIFEST}") and name.count("/") == 2
        )
        for folder in (self.local / CHECKPOINTS).glob("step-*"):
            if folder.name not in complete or not self._is_same(folder):
                shutil.rmtree(folder)
        wanted = [name for name in there if name.split("/")[0] in RUN_FILES or name == "export/provenance.json"]
        if complete and not (self.local / CHECKPOINTS / complete[-1]).exists():
            inside = sorted(name for name in there if name.startswith(f"{CHECKPOINTS}/{complete[-1]}/"))
            wanted += sorted(inside, key=lambda name: name.endswith(f"{complete[-1]}/{MANIFEST}"))  # manifest last
        self._fetch(wanted)

    def fetch(self, name: str) -> None:
        """Download one folder. Raises StorageError."""
        self._fetch(file.removeprefix(f"{self._base()}/") for file in self._files(name))

    def put(self, names: Iterable[str]) -> None:
        """Upload files or folders; names that do not exist locally are skipped. Raises StorageError."""
        for name in names:
            path = self.local / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    _upload(file, storage.join(self.url, file.relative_to(self.local).as_posix()))

    def remove_partial(self) -> None:
        """Remove checkpoints at the URL that have no manifest because their upload was interrupted."""
        for folder in storage.list_files(storage.join(self.url, CHECKPOINTS)):
            if not storage.exists(storage.join(folder, MANIFEST)):
                storage.remove(folder)

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint at the URL, its manifest first, so that a partial removal leaves it incomplete."""
        folder = storage.join(self.url, CHECKPOINTS, name)
        storage.remove(storage.join(folder, MANIFEST))
        storage.remove(folder)

    def _base(self) -> str:
        """The URL in the form that file listings use as prefix."""
        fs = storage.filesystem(self.url)
        return str(fs.unstrip_protocol(fs._strip_protocol(self.url))).rstrip("/")

    def _files(self, name: str) -> list[str]:
        storage.filesystem(self.url).invalidate_cache()
        return listing.expand(storage.join(self.url, name) if name else self.url)

    def _is_same(self, folder: Path) -> bool:
        """True if the manifests of the local checkpoint and the one at the URL are equal."""
        path = folder / MANIFEST
        url = storage.join(self.url, CHECKPOINTS, folder.name, MANIFEST)
        return path.exists() and path.read_bytes() == storage.read_bytes(url)

    def _fetch(self, names: Iterable[str]) -> None:
        for name in names:
            path, url = self.local / name, storage.join(self.url, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.build_locally(str(path)) as scratch:
                try:
                    storage.get_file(url, scratch)
                except OSError as error:
                    raise StorageError(f"cannot read {url}: {error.strerror or error}") from error


def _upload(path: Path, url: str) -> None:
    with storage.build_locally(url) as scratch:
        try:
            os.link(path, scratch)
        except OSError:  # another disk
            shutil.copyfile(path, scratch)
