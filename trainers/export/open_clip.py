"""Export a checkpoint as a folder for open_clip: `create_model_and_transforms("local-dir:<folder>")`.

open_clip itself is never imported: the conversion is a table of names and shapes, verified by the way back.
"""

from __future__ import annotations

import json
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from schemas import storage
from schemas.errors import InputError
from schemas.preprocess import load_preprocess
from trainers.export.checkpoint_folder import find_checkpoint
from trainers.export.open_clip_config import is_exact, open_clip_config
from trainers.export.open_clip_map import State, clip_moves, convert, convert_back, siglip_moves
from trainers.export.provenance import make_provenance
from trainers.models.folder import local_folder, read_config

_MOVES = {"clip": clip_moves, "siglip": siglip_moves}


def export(run_dir: str, out_dir: str, step: int | None = None, averaged: bool = False) -> str:
    """Write open_clip_config.json, open_clip_model.safetensors and the tokenizer; returns `out_dir`.

    Raises InputError for models that open_clip cannot hold: LLaVA, locked foreign towers, SigLIP of odd sizes.
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
    with storage.build_locally(storage.join(out_dir, "open_clip_model.safetensors")) as path:
        save_file(converted, path, metadata={"format": "pt"})
    _copy_tokenizer(local, out_dir)
    provenance = make_provenance(checkpoint.recipe, checkpoint.state) | {"averaged": averaged}
    _write_json(out_dir, "provenance.json", provenance)
    receipt = {"num_tensors": len(converted), "num_restored_equal": len(restored), "same_activation": is_exact(config)}
    _write_json(out_dir, "receipt.json", receipt)
    _write_json(out_dir, "open_clip_config.json", described)
    return out_dir


def _load_state(folder: str) -> State:
    state: State = {}
    for url in storage.list_files(folder):
        if url.endswith(".safetensors"):
            state |= load_file(url)
    return state


def _copy_tokenizer(folder: str, out_dir: str) -> None:
    """Which files a tokenizer has differs by its class."""
    for url in storage.list_files(folder):
        name = os.path.basename(url)
        if "tokenizer" in name or name in ("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"):
            storage.put_bytes(storage.join(out_dir, name), storage.read_bytes(url))


def _write_json(folder: str, name: str, value: object) -> None:
    storage.put_bytes(storage.join(folder, name), json.dumps(value, indent=1, sort_keys=True).encode())
