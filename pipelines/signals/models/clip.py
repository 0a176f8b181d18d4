"""An image-text model from a Hugging Face folder: L2-normalised features of images and captions.

Supports CLIP, SigLIP (and SigLIP 2 of fixed resolution, which has SigLIP's classes), SigLIP 2 with NaFlex and
VisionTextDualEncoder.
Legend: B samples of a batch, D embedding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from pairloom.pipelines.signals.models.actors import ModelInputs
from pairloom.pipelines.signals.models.model_folder import on_disk
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.naflex import load_any_preprocess

Features = npt.NDArray[np.float32]  # [B, D]
TEXT_LENGTHS = (16, 32, 48)  # tokens; padding depends on a caption's own length, not on its batch

MODEL_TYPES = ("clip", "siglip", "siglip2", "vision-text-dual-encoder")


class ClipModel:
    """Features of one model on one device."""

    def __init__(self, folder: str, device: str) -> None:
        self.folder = folder
        self.device = device
        self.preprocess = load_any_preprocess(folder)
        with tempfile.TemporaryDirectory() as scratch:
            path = on_disk(folder, scratch)
            self._load(path)

    def _load(self, path: str) -> None:
        with open(f"{path}/config.json", encoding="utf-8") as file:
            self.model_type = json.load(file).get("model_type")
        if self.model_type not in MODEL_TYPES:
            raise InputError(
                f"{self.folder}: model type {self.model_type}; clip signals support {', '.join(MODEL_TYPES)}"
            )
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = AutoModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.model = model.eval().to(self.device)
        max_positions = int(self.model.config.text_config.max_position_embeddings)
        self.max_tokens = min(max_positions, int(self.tokenizer.model_max_length))
        if self.tokenizer.pad_token is None:
            raise InputError(f"{self.folder}: its tokenizer has no pad token; set one and save the tokenizer")

    def embedding_dim(self) -> int:
        """D, the width of the features."""
        return int(self.text_features(self.text_inputs(["a"])).shape[1])

    def image_inputs(self, pixels: Pixels) -> ModelInputs:
        """The model inputs of one decoded image."""
        return self.preprocess.model_inputs([self.preprocess.resize(pixels)])

    def text_inputs(self, captions: Sequence[str]) -> list[ModelInputs]:
        """The model inputs of each caption, padded to the smallest of TEXT_LENGTHS that fits."""
        # SigLIP's text tower pools the last position and was trained on full-length texts without a mask.
        pads_to_maximum = self.model_type in ("siglip", "siglip2")
        lists = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [self._padded(ids, pads_to_maximum) for ids in lists]

    def _padded(self, ids: Sequence[int], pads_to_maximum: bool) -> ModelInputs:
        lengths = () if pads_to_maximum else TEXT_LENGTHS
        length = next((length for length in lengths if len(ids) <= length < self.max_tokens), self.max_tokens)
        start = length - len(ids) if self.tokenizer.padding_side == "left" else 0
        used = slice(start, start + len(ids))
        input_ids = np.full((1, length), self.tokenizer.pad_token_id, np.int64)
        input_ids[0, used] = ids
        if pads_to_maximum:
            return {"input_ids": input_ids}
        mask = np.zeros((1, length), np.int64)
        mask[0, used] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    @torch.inference_mode()
    def image_features(self, inputs: Sequence[ModelInputs]) -> Features:
        """Features of images: [B, D], L2-normalised."""
        return _normalised(self.model.get_image_features(**self._concatenated(inputs)))

    @torch.inference_mode()
    def text_features(self, inputs: Sequence[ModelInputs]) -> Features:
        """Features of captions of one padded length: [B, D], L2-normalised."""
        return _normalised(self.model.get_text_features(**self._concatenated(inputs)))

    def _concatenated(self, inputs: Sequence[ModelInputs]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.concatenate([one[name] for one in inputs])).to(self.device) for name in inputs[0]
        }


def _normalised(output: Any) -> Features:
    features_BD = output.pooler_output.float()
    normalised: Features = torch.nn.functional.normalize(features_BD, dim=-1).cpu().numpy()
    return normalised
