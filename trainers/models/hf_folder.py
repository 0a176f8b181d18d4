"""Read config.json of Hugging Face folders, and copy remote folders to local disk."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import lru_cache
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage


def read_config(folder: str) -> dict[str, Any]:
    """Read a folder's config.json. Raises InputError when it is missing, not JSON or has no model_type."""
    url = storage.join(folder, "config.json")
    try:
        config = json.loads(storage.read_text(url))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no config.json; give a Hugging Face model folder") from error
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{url}: names no model_type")
    return config


def model_type_of(folder: str) -> str:
    """The `model_type` of a folder: siglip, clip, llava, llama, ... Raises InputError."""
    return str(read_config(folder)["model_type"])


@lru_cache(maxsize=16)
def local_folder(folder: str) -> str:
    """A local folder with the same files; a remote folder is copied and the copy is removed when the process exits."""
    if storage.is_local(folder):
        return storage.local_path(folder)
    copy = tempfile.mkdtemp(prefix="pairloom-model-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for url in storage.list_files(folder):
        storage.get_file(url, os.path.join(copy, storage.name_of(url)))
    return copy
