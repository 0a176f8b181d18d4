"""Export a checkpoint as a folder for open_clip: `create_model_and_transforms("local-dir:<folder>")`.

The conversion renames and reshapes tensors by a table and is verified by converting back. It does not need open_clip.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from pairloom.schemas.errors import InputError
from pairloom.schemas.images.preprocess import load_preprocess
from pairloom.schemas.storage import storage
from pairloom.trainers.export.checkpoint_folder import find_checkpoint
from pairloom.trainers.export.documents import copy_tokenizer, remove_documents, write_documents, write_json
from pairloom.trainers.export.open_clip_receipt import WEIGHTS, measure
from pairloom.trainers.models.hf_folder import local_folder, read_config
from pairloom.trainers.open_clip.config import is_exact, open_clip_config
from pairloom.trainers.open_clip.state_dict_map import State, clip_moves, convert, convert_back, siglip_moves

_MOVES = {"clip": clip_moves, "siglip": siglip_moves}


def export(run_dir: str, out_dir: str, step: int | None = None, averaged: bool = False) -> str:
    """Write open_clip_config.json, open_clip_model.safetensors and the tokenizer; returns `out_dir`.

    Raises InputError for models that open_clip cannot represent: LLaVA, towers of other families, and SigLIP sizes that
    timm does not have.
    """
    checkpoint = find_checkpoint(run_dir, step, averaged)
    model_type = read_config(checkpoint.model_url)["model_type"]
    if model_type not in _MOVES:
        raise InputError(f"{run_dir}: open_clip holds CLIP and SigLIP models; this is {model_type}; use --format hf")
    local = local_folder(checkpoint.model_url)
    config = AutoConfig.from_pretrained(local)
    described = open_clip_config(config, load_preprocess(local))
    state = _load_state(local)
    num_layers = (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers)
    moves = _MOVES[model_type](*num_layers)
    converted = convert(state, moves)
    restored = convert_back(converted, moves, {name: tensor.shape for name, tensor in state.items()})
    wrong = [name for name, tensor in state.items() if not torch.equal(restored[name], tensor)]
    if wrong:
        raise InputError(f"open_clip export: tensors changed on the way: {', '.join(wrong[:5])}")
    remove_documents(out_dir)
    with storage.build_locally(storage.join(out_dir, WEIGHTS)) as path:
        save_file(converted, path, metadata={"format": "pt"})
    copy_tokenizer(local, out_dir)
    write_json(storage.join(out_dir, "open_clip_config.json"), described)
    receipt = {
        "num_tensors": len(converted),
        "num_restored_equal": len(restored),
        "same_activation": is_exact(config),
        **measure(out_dir, checkpoint.model_url),
    }
    write_documents(out_dir, checkpoint, receipt, "open-clip")
    return out_dir


def _load_state(folder: str) -> State:
    state: State = {}
    for url in storage.list_files(folder):
        if url.endswith(".safetensors"):
            state |= load_file(url)
    return state
