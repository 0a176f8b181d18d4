"""An image-text model from a Hugging Face folder: features of images and captions, L2-normalised.

Takes CLIP, SigLIP (and SigLIP 2 of fixed resolution, which has SigLIP's classes), SigLIP 2 with NaFlex and
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
TEXT_LENGTHS = (16, 32, 48)  # tokens: a caption's own length decides, so that no other caption changes its features

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
            raise InputError(f"{self.folder}: model type {self.model_type}; clip signals take {', '.join(MODEL_TYPES)}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = AutoModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.model = model.eval().to(self.device)
        places = int(self.model.config.text_config.max_position_embeddings)
        self.max_tokens = min(places, int(self.tokenizer.model_max_length))
        if self.tokenizer.pad_token is None:
            raise InputError(f"{self.folder}: its tokenizer has no pad token")

    def embedding_dim(self) -> int:
        """D, the width of the features."""
        return int(self.text_features(self.text_inputs(["a"])).shape[1])

    def image_inputs(self, pixels: Pixels) -> ModelInputs:
        """What the model takes of one decoded image."""
        return self.preprocess.model_inputs([self.preprocess.resize(pixels)])

    def text_inputs(self, captions: Sequence[str]) -> list[ModelInputs]:
        """What the model takes of each caption, padded to the least of TEXT_LENGTHS that holds it."""
        # SigLIP's text tower pools the last position and was trained on full-length texts without a mask.
        fills_up = self.model_type in ("siglip", "siglip2")
        lists = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [self._padded(ids, fills_up) for ids in lists]

    def _padded(self, ids: Sequence[int], fills_up: bool) -> ModelInputs:
        lengths = () if fills_up else TEXT_LENGTHS
        length = next((length for length in lengths if len(ids) <= length < self.max_tokens), self.max_tokens)
        start = length - len(ids) if self.tokenizer.padding_side == "left" else 0
        here = slice(start, start + len(ids))
        input_ids = np.full((1, length), self.tokenizer.pad_token_id, np.int64)
        input_ids[0, here] = ids
        if fills_up:
            return {"input_ids": input_ids}
        mask = np.zeros((1, length), np.int64)
        mask[0, here] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    @torch.inference_mode()
    def image_features(self, inputs: Sequence[ModelInputs]) -> Features:
        """Features of images: [B, D], L2-normalised."""
        return _normalised(self.model.get_image_features(**self._joined(inputs)))

    @torch.inference_mode()
    def text_features(self, inputs: Sequence[ModelInputs]) -> Features:
        """Features of captions of one padded length: [B, D], L2-normalised."""
        return _normalised(self.model.get_text_features(**self._joined(inputs)))

    def _joined(self, inputs: Sequence[ModelInputs]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.concatenate([one[name] for one in inputs])).to(self.device) for name in inputs[0]
        }


def _normalised(output: Any) -> Features:
    features_BD = output.pooler_output.float()
    normalised: Features = torch.nn.functional.normalize(features_BD, dim=-1).cpu().numpy()
    return normalised
