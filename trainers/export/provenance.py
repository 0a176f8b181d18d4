"""provenance.json: the recipe, data and code version of a model, to reproduce it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pairloom.schemas.data_set.manifest import load_manifest, resolve
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of


def make_provenance(recipe: TrainRecipe, state: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, data hashes, progress, code version, and the provenance of the run's initial model (`parent`).

    `state` is the checkpoint's state.json. Its `data` has precedence over the data on disk, which may have changed
    since the training.
    """
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": state.get("data") or data_identities(recipe),
        "samples_seen": state["samples_seen"],
        "step": state["step"],
        "code_version": version("pairloom"),
        "parent": _parent(recipe.init_from or recipe.model.path),
    }


def data_identities(recipe: TrainRecipe) -> list[dict[str, str | None]]:
    """Path and manifest hash per data set of the recipe; for a conversations file the SHA-256."""
    return [{"path": source.path, "manifest_hash": _identity(source.path)} for source in recipe.data.train]


def _identity(path: str) -> str | None:
    """The hash of one data set; None if it no longer exists."""
    if path.endswith((".json", ".jsonl")):
        return sha256_of(path) if storage.exists(path) else None
    try:
        return load_manifest(resolve(path)).hash()
    except InputError:
        return None


def _parent(folder: str | None) -> dict[str, Any] | None:
    url = storage.join(folder, "provenance.json") if folder else None
    if url is None or not storage.exists(url):
        return None
    parent: dict[str, Any] = json.loads(storage.read_text(url))
    return parent
