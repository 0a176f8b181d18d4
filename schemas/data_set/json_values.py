"""Values of tables as JSON, for raw and curated tars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_value(value: object) -> Any:
    """A Python value of any Arrow type as a JSON value.

    Non-finite numbers become null; times, dates, durations and decimals become text; bytes become UTF-8 text, with
    U+FFFD for invalid bytes.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): json_value(one) for name, one in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    item = getattr(value, "item", None)  # numpy scalars, such as float16
    return json_value(item()) if callable(item) else str(value)


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a row: sorted keys, no spaces, UTF-8. Equal rows give equal bytes."""
    return _JSON.encode(json_value(fields)).encode("utf-8", "replace")
