"""The provenance.json of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_provenance(folder: Path, hold_out_fold: list[int] | None, parent: list[int] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    provenance: dict[str, Any] = {"recipe": {"data": {"train": [{"path": "x", "hold_out_fold": hold_out_fold}]}}}
    if parent is not None:
        provenance["parent"] = {"recipe": {"data": {"train": [{"path": "y", "hold_out_fold": parent}]}}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
