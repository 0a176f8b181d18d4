"""Model folders: content fingerprints, local copies, and held-out folds. Imports no framework."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

RESULT_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Files that change a model's output; receipts, provenance and model cards do not."""


def model_fingerprint(folder: str) -> str:
    """Fingerprint of the files that change the model's output. Raises InputError for a folder without a model."""
    names = {storage.name_of(url): url for url in storage.list_files(folder)}
    used = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in RESULT_FILES))
    if "config.json" not in used or not any(name.endswith(".safetensors") for name in used):
        raise InputError(f"{folder}: not a Hugging Face model folder; it needs config.json and *.safetensors")
    digest = hashlib.sha256()
    for name in used:
        digest.update(f"{name}\0{sha256_of(names[name])}\n".encode())
    return digest.hexdigest()


def check_held_out(models: Sequence[str]) -> None:
    """Raise InputError unless model k of n, and each of its parent models, was trained without fold k."""
    for fold, folder in enumerate(models):
        url = storage.join(folder, "provenance.json")
        if not storage.exists(url):
            raise InputError(
                f"{folder}: no provenance.json with its held-out fold; "
                "`models` needs pairloom exports, use `model` for other models"
            )
        for held_out in _folds_left_out(json.loads(storage.read_text(url))):
            if held_out != [fold, len(models)]:
                raise InputError(
                    f"{folder}: it or a parent model was trained with hold_out_fold {held_out}, but it scores fold "
                    f"{fold} of {len(models)}; train with data.train.0.hold_out_fold=[{fold},{len(models)}], or change "
                    "the order of models"
                )


def _folds_left_out(provenance: Mapping[str, Any] | None) -> Iterator[list[int] | None]:
    """hold_out_fold of every training data set of a model and of its parent models."""
    while provenance is not None:
        for source in provenance["recipe"]["data"]["train"]:
            yield source.get("hold_out_fold")
        provenance = provenance.get("parent")


def on_disk(folder: str, scratch: str) -> str:
    """A local path of the model folder: the folder itself, or a copy in `scratch`."""
    if storage.is_local(folder):
        return storage.local_path(folder)
    for url in storage.list_files(folder):
        with open(f"{scratch}/{storage.name_of(url)}", "wb") as file:
            file.write(storage.read_bytes(url))
    return scratch
