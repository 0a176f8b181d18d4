"""The folder on this machine for files that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where pairloom keeps what can be made or fetched again: $PAIRLOOM_CACHE or ~/.cache/pairloom."""
    named = os.environ.get("PAIRLOOM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "pairloom"
