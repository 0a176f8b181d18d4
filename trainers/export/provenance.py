"""provenance.json: what a model was made from, so that it can be made again."""

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
    """Recipe, data by content, progress, code version and the provenance of the model that the run began with.

    `state` is the checkpoint's state.json; where it records `data`, that is taken, for data can change after training.
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
    """Every data set of the recipe with its manifest hash (a conversations file: with its sha256)."""
    return [{"path": source.path, "manifest_hash": _identity(source.path)} for source in recipe.data.train]


def _identity(path: str) -> str | None:
    """Null where the data is no longer there."""
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
