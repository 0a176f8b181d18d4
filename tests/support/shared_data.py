"""The folder of real data for tests: `PAIRLOOM_SHARED`, or `shared` beside the repository."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("PAIRLOOM_SHARED", str(REPOSITORY.parent / "shared"))) / "data"
