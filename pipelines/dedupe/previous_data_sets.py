"""EarlierDataSet data sets (`against`): their tables and their signals. Their images are not needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pairloom.pipelines.engine.batches import Folders
from pairloom.pipelines.engine.step_folder import latest_folder
from pairloom.pipelines.signals.measure import signal_folder
from pairloom.schemas.data_set.manifest import Manifest, load_manifest, resolve
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe

logger = logging.getLogger("pairloom")


@dataclass(frozen=True)
class EarlierDataSet:
    """One earlier raw folder."""

    folders: Folders
    manifest: Manifest


def find_earlier(recipe: CurateRecipe) -> list[EarlierDataSet]:
    """The data sets of `against`. Raises InputError if one has no 256-bit hashes although they are compared."""
    found = []
    for path in recipe.dedupe.against:
        raw_folder = resolve(path)
        manifest = load_manifest(raw_folder)
        hashes, features = _hashes(recipe, raw_folder, manifest), _features(recipe, raw_folder)
        found.append(EarlierDataSet(Folders(raw_folder, hashes=hashes, features=features), manifest))
    return found


def warn_of_missing_features(recipe: CurateRecipe, earlier: Sequence[EarlierDataSet]) -> dict[str, object]:
    """Warn of earlier data sets without features. Returns details for the manifest."""
    semantic = recipe.dedupe.semantic
    without = [one.folders.raw for one in earlier if one.folders.features is None]
    if semantic is None or not without:
        return {}
    for raw_folder in without:
        logger.warning(
            "dedupe.against: %s has no features %s of the same model; semantic duplicates of its images are kept",
            raw_folder, semantic.features
        )  # fmt: skip
    return {"semantic_not_compared_with": without}


def _root_of(raw_folder: str) -> str:
    """The root of a raw folder. Raises InputError if it is not below a root."""
    root = root_of(raw_folder)
    if root is None:
        raise InputError(f"dedupe.against: {raw_folder} is not <root>/raw/<name>/<hash8>; name a folder below its root")
    return root


def _hashes(recipe: CurateRecipe, raw_folder: str, manifest: Manifest) -> str | None:
    name = recipe.dedupe.hashes
    if name is None:
        return None
    folder = latest_folder(_root_of(raw_folder), "signals", name)
    if folder is None or load_manifest(folder).parents[0] != manifest.hash():
        raise InputError(f"dedupe.against: {raw_folder} has no signal {name} of its images; measure it there")
    return folder


def _features(recipe: CurateRecipe, raw_folder: str) -> str | None:
    """The folder that this recipe's features signal has in the earlier data set, or None."""
    if recipe.dedupe.semantic is None:
        return None
    root, name = _root_of(raw_folder), recipe.dedupe.semantic.features
    if latest_folder(root, "signals", name) is None:
        return None
    folder = replace(signal_folder(recipe, recipe.signal(name), raw_folder, None), root=root)
    return folder.url if folder.is_complete() else None
