"""Export a checkpoint as a Hugging Face folder with model card, receipt and provenance."""

from __future__ import annotations

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.trainers.export.checkpoint_folder import find_checkpoint
from pairloom.trainers.export.documents import remove_documents, write_documents
from pairloom.trainers.export.receipt import make_receipt


def export(run_dir: str, out_dir: str, step: int | None = None, averaged: bool = False) -> str:
    """Copy a checkpoint's model, or its averaged weights, to `out_dir`; plain transformers can load the result.

    Returns `out_dir`. receipt.json holds measurements of the copied folder, README.md is the model card;
    provenance.json is written last and marks the export as complete. Raises InputError when there is no such checkpoint
    or the outputs of the copy differ from the trained model's.
    """
    checkpoint = find_checkpoint(run_dir, step, averaged)
    names = [storage.name_of(url) for url in storage.list_files(checkpoint.model_url)]
    if "config.json" not in names:
        raise InputError(f"{checkpoint.model_url}: no model in this checkpoint")
    remove_documents(out_dir)
    for name in names:
        _copy_file(storage.join(checkpoint.model_url, name), storage.join(out_dir, name))
    receipt = make_receipt(out_dir, checkpoint.model_url, storage.join(run_dir, "tokenizer"))
    write_documents(out_dir, checkpoint, receipt, "hf")
    return out_dir


def _copy_file(source: str, target: str) -> None:
    with storage.build_locally(target) as path:
        storage.get_file(source, path)
