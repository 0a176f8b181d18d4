"""Tokenizers of SigLIP 2 (arXiv 2502.14786).

transformers loads every tokenizer in the folder of a Siglip2Model as a `Siglip2Tokenizer`: Gemma's BPE over words that
begin with "▁", on lower-cased texts, with unknown characters as bytes. The class reads only the vocabulary and the
merges of tokenizer.json and ignores its normalizer and pre-tokenizer. A tokenizer of another kind would therefore give
different ids after the export, without an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, Siglip2Tokenizer

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.text.bpe_tokenizer import save_whole

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SPECIAL = (PAD, EOS, "<bos>", UNKNOWN, "<mask>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
MAX_LETTERS = 1000  # characters with a token of their own; all others are encoded as bytes
SETTINGS: Mapping[str, Any] = {"padding_side": "right", "model_input_names": ["input_ids"]}
"""Settings of the published models, which differ from the defaults of the class: the text tower pools the last
position, padding included, and has no attention mask.
"""
PROBES = ("a dog on the beach", "two children play football, 3 others watch.", "naïve café – 東京", "x  y")


def train_siglip2_tokenizer(texts: Iterable[str], vocab_size: int, folder: str, max_length: int) -> None:
    """Train a Siglip2Tokenizer and write its folder.

    Texts are lower-cased and encoded as `... <eos>`, at most `max_length` tokens. Equal texts give equal files.
    """
    texts = list(texts)
    letters = _letters(texts, min(MAX_LETTERS, (vocab_size - len(SPECIAL) - len(BYTES)) // 2))
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token spans two words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *BYTES],
        initial_alphabet=letters,
        limit_alphabet=len(letters),  # the trainer's own choice is not deterministic
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Siglip2Tokenizer(vocab=learned["vocab"], merges=merges, model_max_length=max_length, **SETTINGS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, bpe.token_to_id(EOS))]
    )
    save_whole(tokenizer, folder)


def _letters(texts: Iterable[str], count: int) -> list[str]:
    """The `count` most frequent characters of the lower-cased texts; ties in code point order."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text.lower().replace(" ", "▁"))
    return sorted(counts, key=lambda letter: (-counts[letter], letter))[:count]


def load_siglip2_tokenizer(folder: str) -> Any:
    """Load a folder's tokenizer as transformers will load it from the export; it lower-cases texts (arXiv 2502.14786).

    Raises RecipeError when its ids would differ from those of the folder's own tokenizer.
    """
    own: Any = AutoTokenizer.from_pretrained(folder)
    is_bpe = getattr(own, "is_fast", False) and isinstance(own.backend_tokenizer.model, models.BPE)
    if is_bpe and own.convert_tokens_to_ids(UNKNOWN) is not None:
        found = Siglip2Tokenizer.from_pretrained(folder, **SETTINGS)
        if all(own(text)["input_ids"] == found(text)["input_ids"] for text in PROBES):
            return found
    raise RecipeError(
        f"tokenizer {folder}: transformers reads the tokenizer of a SigLIP 2 as Siglip2Tokenizer (Gemma's kind); "
        "this is another kind; train one (tokenizer.train), or begin with a siglip2-* run or a SigLIP 2 checkpoint"
    )
