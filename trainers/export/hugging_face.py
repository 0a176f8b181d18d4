"""Export a checkpoint as a Hugging Face folder with its provenance and its receipt."""

from __future__ import annotations

import json

from schemas import storage
from schemas.errors import InputError
from trainers.export.checkpoint_folder import find_checkpoint
from trainers.export.provenance import make_provenance
from trainers.export.receipt import make_receipt
from trainers.models.folder import local_folder


def export(run_dir: str, out_dir: str, step: int | None = None, averaged: bool = False) -> str:
    """Copy a checkpoint's model, or its averaged weights, to `out_dir`, which plain transformers loads.

    Returns `out_dir`. receipt.json holds what was measured on the copied folder; provenance.json comes last and says
    that all is well.
    Raises InputError.
    """
    checkpoint = find_checkpoint(run_dir, step, averaged)
    names = [storage.name_of(url) for url in storage.list_files(checkpoint.model_url)]
    if "config.json" not in names:
        raise InputError(f"{checkpoint.model_url}: no model in this checkpoint")
    for name in ("provenance.json", "receipt.json"):  # of an earlier export into the same folder
        storage.remove(storage.join(out_dir, name))
    for name in names:
        _copy_file(storage.join(checkpoint.model_url, name), storage.join(out_dir, name))
    receipt = make_receipt(out_dir, checkpoint.model_url, storage.join(run_dir, "tokenizer"))
    _write_json(storage.join(out_dir, "receipt.json"), receipt)
    provenance = make_provenance(checkpoint.recipe, checkpoint.state) | {"averaged": averaged}
    _write_json(storage.join(out_dir, "provenance.json"), provenance)
    local_folder.cache_clear()
    return out_dir


def _copy_file(source: str, target: str) -> None:
    with storage.build_locally(target) as path:
        storage.get_file(source, path)


def _write_json(url: str, value: object) -> None:
    storage.put_bytes(url, json.dumps(value, indent=1, sort_keys=True).encode())
