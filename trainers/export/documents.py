"""Documents of every export: receipt.json, README.md (the model card) and provenance.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pairloom.schemas.storage import storage
from pairloom.trainers.export.checkpoint_folder import CheckpointFolder
from pairloom.trainers.export.model_card import model_card
from pairloom.trainers.export.provenance import make_provenance
from pairloom.trainers.models.hf_folder import local_folder, read_config

NAMES = ("provenance.json", "receipt.json", "README.md")
_TOKENIZER_FILES = ("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json")


def remove_documents(out_dir: str) -> None:
    """Remove the documents of an earlier export to the same folder, which would not match the new weights."""
    for name in NAMES:
        storage.remove(storage.join(out_dir, name))


def write_documents(out_dir: str, checkpoint: CheckpointFolder, receipt: Mapping[str, Any], form: str) -> None:
    """Write the three documents for an export of `form` (hf, open-clip, onnx).

    provenance.json is written last and marks the export as complete.
    """
    provenance = make_provenance(checkpoint.recipe, checkpoint.state) | {"averaged": checkpoint.averaged}
    card = model_card(form, read_config(checkpoint.model_url), provenance, receipt, evaluations_of(checkpoint))
    write_json(storage.join(out_dir, "receipt.json"), receipt)
    storage.put_bytes(storage.join(out_dir, "README.md"), card.encode())
    write_json(storage.join(out_dir, "provenance.json"), provenance)
    local_folder.cache_clear()


def evaluations_of(checkpoint: CheckpointFolder) -> list[dict[str, Any]]:
    """The run's evaluation results for this checkpoint; empty for averaged weights, which are never evaluated."""
    url = storage.join(checkpoint.run_dir, "evaluations.jsonl")
    if checkpoint.averaged or not storage.exists(url):
        return []
    lines = [json.loads(line) for line in storage.read_text(url).splitlines()]
    return [line for line in lines if line["checkpoint"] == storage.name_of(checkpoint.url)]


def copy_tokenizer(folder: str, out_dir: str) -> None:
    """Copy the tokenizer files of a model folder; their names depend on the tokenizer class."""
    for url in storage.list_files(folder):
        name = storage.name_of(url)
        if "tokenizer" in name or name in _TOKENIZER_FILES:
            storage.put_bytes(storage.join(out_dir, name), storage.read_bytes(url))


def write_json(url: str, value: object) -> None:
    """Write a value as JSON with sorted keys."""
    storage.put_bytes(url, json.dumps(value, indent=1, sort_keys=True).encode())
