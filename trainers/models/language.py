"""Language models for LLaVA: from a Hugging Face folder, from a LLaVA export, or a small Llama preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.models.hf_folder import local_folder, model_type_of


@dataclass(frozen=True)
class LanguagePreset:
    """Sizes of a Llama model; the vocabulary size comes from the tokenizer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_length: int  # tokens
    initializer_range: float = 0.02


LANGUAGE_PRESETS = {
    "llama-test-tiny": LanguagePreset(64, 2, 4, 128, 512),
    "llama-demo": LanguagePreset(128, 2, 4, 384, 512, 0.08),  # 0.43M parameters without embeddings
}


@dataclass(frozen=True)
class LanguageParts:
    """The parts of a causal language model that LlavaForConditionalGeneration holds."""

    config: Any
    body: Any  # the model without its head
    head: Any  # nn.Linear, hidden size to vocabulary size


def load_language(language: str, vocab_size: int, seed: int) -> LanguageParts:
    """Load an fp32 language model from a folder, or make a preset's with random weights of `seed`.

    Raises InputError for a folder without a model, RecipeError for a model that LLaVA's class cannot hold.
    """
    if language in LANGUAGE_PRESETS:
        return _from_preset(LANGUAGE_PRESETS[language], vocab_size, seed)
    local = local_folder(language)
    if model_type_of(local) == "llava":
        llava = LlavaForConditionalGeneration.from_pretrained(local, dtype=torch.float32)
        return LanguageParts(llava.config.text_config, llava.model.language_model, llava.lm_head)
    config = AutoConfig.from_pretrained(local)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise RecipeError(f"model.llava.language: {language} ({config.model_type}) is no causal language model")
    model = AutoModelForCausalLM.from_pretrained(local, dtype=torch.float32)
    head = model.get_output_embeddings()
    if head is None or head.bias is not None:
        raise RecipeError(f"model.llava.language: {language} has a head that LLaVA's class cannot hold")
    return LanguageParts(model.config, model.base_model, head)


def _from_preset(preset: LanguagePreset, vocab_size: int, seed: int) -> LanguageParts:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=preset.hidden_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_heads,
        intermediate_size=preset.intermediate_size,
        max_position_embeddings=preset.max_length,
        initializer_range=preset.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageParts(config, model.model, model.lm_head)
