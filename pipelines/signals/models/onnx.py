"""An ONNX file as a scorer's network: one input, one output, a batch axis of any size.

Needs onnxruntime (`pip install 'pairloom[onnx]'`); with `onnxruntime-gpu` instead it runs on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

Array = npt.NDArray[np.float32]


def is_onnx(model: str) -> bool:
    """Whether a path is that of an ONNX file; other models are folders or safetensors files."""
    return model.endswith(".onnx")


class OnnxFile:
    """The network on one device. Raises InputError for a file that cannot be used."""

    def __init__(self, url: str, device: str) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf
        except ImportError as error:
            raise InputError(f"{url}: needs onnxruntime; pip install 'pairloom[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # one thread per batch
        providers = ["CUDAExecutionProvider"] if device == "cuda" else []
        available = [name for name in providers if name in onnxruntime.get_available_providers()]
        try:
            data = storage.read_bytes(url)
            self._session: Any = onnxruntime.InferenceSession(data, options, [*available, "CPUExecutionProvider"])
        except FileNotFoundError as error:
            raise InputError(f"{url}: no such file") from error
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
            raise InputError(f"{url}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or isinstance(inputs[0].shape[0], int):
            raise InputError(f"{url}: must take one input whose first axis is of any size, not {_described(inputs)}")
        self._input = inputs[0].name
        self.input_shape: list[Any] = inputs[0].shape  # sizes; an axis of any size has a name

    def __call__(self, values: Array) -> Array:
        """The first output: [B, ...]."""
        found: Array = self._session.run(None, {self._input: values})[0].astype(np.float32)
        return found


def _described(inputs: Any) -> str:
    return ", ".join(f"{one.name} {one.shape}" for one in inputs)
