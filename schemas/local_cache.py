"""The local folder for files that can be recreated."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$PAIRLOOM_CACHE or ~/.cache/pairloom."""
    named = os.environ.get("PAIRLOOM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "pairloom"
