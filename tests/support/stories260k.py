"""A real language model for tests: llama2.c's stories260K as a Hugging Face folder."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.shared_data import SHARED_DATA

STORIES = SHARED_DATA / "stories260K"
WORD_MARK = "▁"


def write_stories260k(out: Path) -> Path:
    """Convert the `.bin` files; returns `out`."""
    _model(STORIES / "stories260K.bin").save_pretrained(out)
    _tokenizer(STORIES / "tok512.bin").save_pretrained(out)
    return out


def _model(path: Path) -> LlamaForCausalLM:
    data = path.read_bytes()
    dim, hidden, num_layers, num_heads, num_kv, vocab, length = struct.unpack("7i", data[:28])
    config = LlamaConfig(
        vocab_size=abs(vocab), hidden_size=dim, intermediate_size=hidden, num_hidden_layers=num_layers,
        num_attention_heads=num_heads, num_key_value_heads=num_kv, max_position_embeddings=length,
        rms_norm_eps=1e-5, tie_word_embeddings=vocab > 0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    values = torch.from_numpy(np.frombuffer(data, np.float32, offset=28).copy())
    place = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return values[place - count : place].reshape(shape)

    kv_dim = dim // num_heads * num_kv
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    parts = [
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv_dim, dim)),
        ("self_attn.v_proj", (kv_dim, dim)), ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)), ("mlp.up_proj", (hidden, dim)),
    ]  # fmt: skip
    for name, shape in parts:
        for layer, tensor in enumerate(take(num_layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                tensor = _halves(tensor, dim // num_heads)
            state[f"model.layers.{layer}.{name}.weight"] = tensor
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def _halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama2.c rotates neighbouring pairs, transformers the two halves of a head: permute the rows."""
    heads = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    data = path.read_bytes()
    tokens: list[str] = []
    place = 4
    while place < len(data):
        (num_bytes,) = struct.unpack("i", data[place + 4 : place + 8])
        tokens.append(data[place + 8 : place + 8 + num_bytes].decode("utf-8", "replace").replace(" ", WORD_MARK))
        place += 8 + num_bytes
    tokens[1], tokens[2] = "<s>", "</s>"
    vocab = {token: index for index, token in enumerate(tokens)}
    # Every token longer than one character was merged from two earlier ones; earlier tokens merge first.
    merges = [
        (token[:cut], token[cut:])
        for index, token in enumerate(tokens[259:])
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    bpe = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), normalizers.Replace(" ", WORD_MARK)])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
