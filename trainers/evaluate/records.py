"""Read jsonl tables of evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage


def read_jsonl(path: str, required: Sequence[str]) -> list[dict[str, Any]]:
    """Records of a jsonl file.

    Raises InputError that names file and line when the file is missing or empty, a line is not JSON, or a record lacks
    a required key.
    """
    try:
        lines = storage.read_text(path).splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from error
        missing = [key for key in required if not isinstance(record, dict) or key not in record]
        if missing:
            raise InputError(f"{path}, line {number}: needs {', '.join(missing)}")
        records.append(record)
    if not records:
        raise InputError(f"{path}: holds no records")
    return records


def file_beside(table: str, name: str) -> str:
    """Resolve a file name of a table: absolute paths and URLs stay, others are relative to the table's folder."""
    if name.startswith("/") or "://" in name:
        return name
    return storage.join(table.rpartition("/")[0] or ".", name)
