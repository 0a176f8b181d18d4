"""Safetensors files on the disk, with their sha256."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pairloom.schemas.storage.digests import sha256_of


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Write CPU tensors; returns the hex sha256 of the file, which is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, {"format": "pt", **metadata})  # the library cannot read a file without tensors and metadata
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(str(path))
