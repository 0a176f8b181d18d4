"""numpy arrays as `.npy` files in storage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.schemas.storage import storage


def put_array(url: str, array: npt.NDArray[Any]) -> None:
    """Write an array atomically, replacing an existing file. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    storage.put_bytes(url, buffer.getvalue())


def read_array(url: str) -> Any:
    """Read an array (`.npy`), or an archive of arrays (`.npz`). Raises FileNotFoundError, ValueError, EOFError."""
    return np.load(io.BytesIO(storage.read_bytes(url)))
