"""Tiny random models as Hugging Face folders, for tests of LLaVA, evaluation and export."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from pairloom.schemas.images.preprocess import Preprocess

TEXTS = [
    "a red circle on the left", "a blue square above a green triangle", "is there a ball? yes no", "USER: ASSISTANT:",
    "what colour is the dog in the picture", "a photo of a church", "two golf balls and a parachute",
]  # fmt: skip


def write_tokenizer(out: Path, max_length: int = 16, pads: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that ends every text, as contrastive models want it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>" if pads else None, eos_token="</s>", model_max_length=max_length
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def write_siglip(out: Path, image_size: int = 32, patch_size: int = 8) -> Path:
    """A SiglipModel of random weights."""
    tokenizer = write_tokenizer(out)
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32,
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
            "image_size": image_size, "patch_size": patch_size,
        },
    )  # fmt: skip
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-5.0)
    model.save_pretrained(out)
    _write_processor(out, Preprocess(size=image_size), "SiglipImageProcessor")
    return out


def write_clip(out: Path, image_size: int = 32, patch_size: int = 8) -> Path:
    """A CLIPModel of random weights."""
    tokenizer = write_tokenizer(out)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "vocab_size": len(tokenizer), "max_position_embeddings": 16, "hidden_act": "gelu",
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
            "image_size": image_size, "patch_size": patch_size, "hidden_act": "gelu",
        },
        projection_dim=24,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(out)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    preprocess = Preprocess(size=image_size, mode="center_crop", mean=mean, std=std)
    _write_processor(out, preprocess, "CLIPImageProcessor")
    return out


def _write_processor(out: Path, preprocess: Preprocess, processor_class: str) -> None:
    config = preprocess.processor_config(processor_class)
    (out / "preprocessor_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
