"""Export a checkpoint as two ONNX graphs, vision.onnx and text.onnx, that output L2-normalised features.

The batch size is dynamic. The text length is dynamic up to the model's maximum, except for SigLIP, whose texts have one
fixed length.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.export.checkpoint_folder import find_checkpoint
from pairloom.trainers.export.documents import copy_tokenizer, remove_documents, write_documents, write_json
from pairloom.trainers.export.receipt import MAX_DIFFERENCE, PROBE_TEXTS, load_strictly, probe_inputs
from pairloom.trainers.models.hf_folder import local_folder, read_config

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
FAMILIES = ("clip", "siglip", "vision-text-dual-encoder")
ONE_FILE_BYTES = 1 << 30  # larger weights go into a separate file; ONNX limits a file to 2 GiB
Inputs = dict[str, torch.Tensor]


def export(
    run_dir: str,
    out_dir: str,
    step: int | None = None,
    averaged: bool = False,
    packages: Sequence[str] = PACKAGES,
) -> str:
    """Write both graphs, scores.json, the tokenizer and the image processor; returns `out_dir`.

    receipt.json compares onnxruntime's outputs with the trained model's, for other batch sizes than the traced one.
    Raises InputError when `packages` are missing, the model is of another family, or outputs differ.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'pairloom[onnx]'")
    checkpoint = find_checkpoint(run_dir, step, averaged)
    model_type = read_config(checkpoint.model_url)["model_type"]
    if model_type not in FAMILIES:
        raise InputError(f"{run_dir}: ONNX is for towers of {', '.join(FAMILIES)}; this is {model_type}")
    encoder = DualEncoder(checkpoint.model_url)
    encoder.device = torch.device("cpu")
    encoder.model.cpu()
    reference, num_tensors = load_strictly(checkpoint.model_url)
    remove_documents(out_dir)
    with tempfile.TemporaryDirectory(prefix="pairloom-onnx-") as scratch:
        differences = _write_graphs(encoder, reference, Path(scratch))
        if not max(differences.values()) <= MAX_DIFFERENCE:
            raise InputError(f"{run_dir}: the graphs differ from the trained model: {differences}; not exported")
        for path in sorted(Path(scratch).iterdir()):
            with storage.build_locally(storage.join(out_dir, path.name)) as target:
                shutil.copyfile(path, target)
    local = local_folder(checkpoint.model_url)
    copy_tokenizer(local, out_dir)
    processor = Path(local, "preprocessor_config.json").read_bytes()
    storage.put_bytes(storage.join(out_dir, "preprocessor_config.json"), processor)
    write_json(storage.join(out_dir, "scores.json"), _scores(reference))
    receipt = {
        "largest_output_difference": max(differences.values()),
        "output_differences": differences,
        "num_parameters": sum(parameter.numel() for parameter in reference.parameters()),
        "num_tensors": num_tensors,
        "versions": {name: version(name) for name in ("torch", "transformers", *PACKAGES)},
    }
    write_documents(out_dir, checkpoint, receipt, "onnx")
    return out_dir


def _write_graphs(encoder: DualEncoder, reference: Any, folder: Path) -> dict[str, float]:
    """Write vision.onnx and text.onnx; returns each tower's largest absolute difference from the reference."""
    images, texts = probe_inputs(encoder.preprocess), encoder.tokenize(PROBE_TEXTS)
    differences = {}
    for tower, name, inputs in (("vision", "image_features", images), ("text", "text_features", texts)):
        path = folder / f"{tower}.onnx"
        _write_graph(_Tower(encoder.model, tower), inputs, path)
        differences[name] = _difference(reference, inputs, path)
    return differences


class _Tower(nn.Module):
    """One tower of a dual encoder, which maps its inputs to L2-normalised features [B, D]."""

    def __init__(self, model: Any, tower: str) -> None:
        super().__init__()
        self._features = model.get_image_features if tower == "vision" else model.get_text_features
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        output = self._features(**{name: tensor for name, tensor in given.items() if tensor is not None})
        return functional.normalize(output.pooler_output, dim=-1)


def _write_graph(tower: _Tower, inputs: Inputs, path: Path) -> None:
    """Trace with the first two samples; the batch size and the length of masked texts are dynamic."""
    batch, length = Dim("batch"), Dim("length", max=int(tower.model.config.text_config.max_position_embeddings))
    shapes = {name: {0: batch} for name in inputs}
    if "attention_mask" in inputs:
        shapes = {name: {0: batch, 1: length} for name in inputs}
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in tower.model.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its warnings are for developers of torch
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower.eval(),
            kwargs={name: tensor[:2] for name, tensor in inputs.items()},
            f=str(path),
            input_names=list(inputs),
            output_names=["features"],
            dynamic_shapes=shapes,
            external_data=num_bytes > ONE_FILE_BYTES,
            dynamo=True,
            verbose=False,
        )


@torch.inference_mode()
def _difference(reference: Any, inputs: Inputs, path: Path) -> float:
    """Largest absolute difference between onnxruntime and the trained model, with all samples in a batch and singly."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tower = _Tower(reference, "vision" if "pixel_values" in inputs else "text")
    largest = 0.0
    for rows in [slice(None), *(slice(row, row + 1) for row in range(len(next(iter(inputs.values())))))]:
        given = {name: tensor[rows] for name, tensor in inputs.items()}
        [found] = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        largest = max(largest, float((torch.from_numpy(found) - tower(**given)).abs().max()))
    return largest


def _scores(model: Any) -> dict[str, float]:
    """Exponentiated scale and bias of logits = logit_scale * image @ text.T + logit_bias."""
    bias = model.logit_bias if hasattr(model, "logit_bias") else getattr(model.config, "logit_bias", 0.0)
    return {"logit_scale": float(model.logit_scale.detach().exp()), "logit_bias": float(torch.as_tensor(bias).detach())}
