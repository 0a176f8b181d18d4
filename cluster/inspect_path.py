"""`pairloom inspect`: shows the content of a root, data set, run or model."""

from __future__ import annotations

import json
from typing import Any

from pairloom.schemas.data_set.generations import run_stale_lines
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import listing, storage

WEIGHTS = (".safetensors", ".onnx", ".onnx.data")


def inspect_path(path: str) -> dict[str, Any]:
    """Counts, sizes, funnel and samples of a root or data set; progress of a run; facts of a model."""
    if storage.exists(storage.join(path, "recipe.yaml")):
        return _inspect_run(path)
    if any(storage.exists(storage.join(path, name)) for name in ("config.json", "receipt.json")):
        return _inspect_model(path)
    from pairloom.pipelines.inspect.inspect import inspect

    return inspect(path)


def _inspect_run(path: str) -> dict[str, Any]:
    """A run folder: progress, newest figures, checkpoints."""
    metrics_url = storage.join(path, "metrics.jsonl")
    lines = storage.read_text(metrics_url).splitlines() if storage.exists(metrics_url) else []
    checkpoints = [
        storage.name_of(folder)
        for folder in storage.list_files(storage.join(path, "checkpoints"))
        if storage.exists(storage.join(folder, "manifest.json"))
    ]
    stale = run_stale_lines(path)
    return {
        "kind": "run",
        **({"stale": stale} if stale else {}),
        "path": path,
        "newest": json.loads(lines[-1]) if lines else {},
        "checkpoints": checkpoints,
        "exported": storage.exists(storage.join(path, "export", "provenance.json")),
    }


def _inspect_model(path: str) -> dict[str, Any]:
    """A model folder or an export of any format: its class, its size and where it came from."""
    url = storage.join(path, "config.json")
    try:
        config = json.loads(storage.read_text(url)) if storage.exists(url) else {}
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}") from error
    result: dict[str, Any] = {
        "kind": "model",
        "path": path,
        "architectures": config.get("architectures", []),
        "num_bytes": sum(storage.size(file) for file in listing.expand(path) if file.endswith(WEIGHTS)),
    }
    for name in ("provenance", "receipt"):
        url = storage.join(path, f"{name}.json")
        if storage.exists(url):
            result[name] = json.loads(storage.read_text(url))
    return result
