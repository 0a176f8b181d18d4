"""Write a LLaVA as a Hugging Face folder that transformers loads without pairloom and torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.storage import storage
from pairloom.trainers.text.chat import num_extra_image_tokens

_PROCESSOR_CLASSES = {"siglip_vision_model": "SiglipImageProcessor", "clip_vision_model": "CLIPImageProcessor"}


def save_llava(folder: str, model: Any, state: Mapping[str, torch.Tensor], tokenizer: Any, pre: Preprocess) -> None:
    """Write config, weights, tokenizer and processor to a local folder; `state` has the keys of the state dict."""
    set_generation(model, tokenizer)
    model.save_pretrained(folder, state_dict=dict(state))
    tokenizer.save_pretrained(folder)
    for name, config in processor_files(model.config, pre).items():
        text = json.dumps(config, indent=1, sort_keys=True)
        storage.put_bytes(storage.join(folder, name), text.encode())


def set_generation(model: Any, tokenizer: Any) -> None:
    """Set greedy generation that stops at the tokenizer's end of text or at ChatML's `<|im_end|>`."""
    ends = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")} - {None}
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )


def processor_files(config: Any, preprocess: Preprocess) -> dict[str, dict[str, Any]]:
    """Contents by file name: preprocessor_config.json (image processor) and processor_config.json (LlavaProcessor)."""
    image = preprocess.processor_config(_PROCESSOR_CLASSES[config.vision_config.model_type])
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": num_extra_image_tokens(config.vision_config),
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "image_processor": image,
    }
    return {
        "preprocessor_config.json": {**image, "processor_class": "LlavaProcessor"},
        "processor_config.json": processor,
    }
