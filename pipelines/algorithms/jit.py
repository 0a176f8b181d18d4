"""numba's compiler with type hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of numpy arrays and numbers to machine code; numba caches it on disk beside its source."""
    return cast(Function, njit(cache=True)(function))
