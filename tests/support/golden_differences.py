"""Differences between an expected JSON value and a found one; new keys are ignored."""

from __future__ import annotations

import math
from typing import Any


def differences(expected: Any, found: Any, path: str, tolerance: float = 0.0) -> list[str]:
    """Different or missing values, one line per dotted path; floats are compared with a relative tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{path}.{key} is missing" for key in expected if key not in found]
        pairs = [(key, expected[key], found[key]) for key in expected if key in found]
        return missing + [line for key, a, b in pairs for line in differences(a, b, f"{path}.{key}", tolerance)]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        two = zip(expected, found, strict=True)
        return [line for index, pair in enumerate(two) for line in differences(*pair, f"{path}.{index}", tolerance)]
    if isinstance(expected, float) and isinstance(found, float):
        is_near = math.isclose(expected, found, rel_tol=tolerance)
        return [] if is_near or expected == found else [f"{path} was {expected!r}, is {found!r}"]
    return [] if expected == found else [f"{path} was {expected!r}, is {found!r}"]
