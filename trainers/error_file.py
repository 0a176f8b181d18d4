"""The file in which a rank reports its error to the launcher: JSON, so that no text has to be searched."""

from __future__ import annotations

import json
import os
import sys

from pairloom.schemas.errors import PairloomError, UserError
from pairloom.schemas.storage import storage

ERROR_FILE = "PAIRLOOM_ERROR_FILE"
"""Environment variable of a rank: path or URL of its file."""


def error_file(folder: str, rank: int) -> str:
    """Path or URL of the file of one rank."""
    return storage.join(folder, f"error{rank}.json")


def write_error(error: PairloomError) -> None:
    """Write the error to the file that the launcher named, or to stderr without a launcher."""
    message = " ".join(str(error).split())
    path = os.environ.get(ERROR_FILE)
    if path is None:
        sys.stderr.write(f"pairloom: {message}\n")
        return
    report = {"message": message, "is_user_error": isinstance(error, UserError)}
    storage.put_bytes(path, json.dumps(report).encode())


def raise_reported(folder: str, num_ranks: int) -> None:
    """Raise the first error that a rank has reported in `folder`: UserError or PairloomError."""
    for rank in range(num_ranks):
        path = error_file(folder, rank)
        if storage.exists(path):
            report = json.loads(storage.read_text(path))
            raise (UserError if report["is_user_error"] else PairloomError)(report["message"])
