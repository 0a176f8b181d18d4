"""Tokenizers of SigLIP 2. In the folder of a Siglip2Model transformers takes any tokenizer for a `Siglip2Tokenizer`.

That class is Gemma's tokenizer with texts in lower case: BPE over words that begin with "▁", unknown letters as bytes.
It keeps vocabulary and merges of tokenizer.json and nothing else of how texts are cut; a tokenizer of another kind
would silently give other ids after the export.
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
MAX_LETTERS = 1000  # that are tokens of their own, of a larger vocabulary; others are bytes
SETTINGS: Mapping[str, Any] = {"padding_side": "right", "model_input_names": ["input_ids"]}
"""As of the published models: the tower pools the last place, padding or not, and sees all of it. The class says
otherwise.
"""
PROBES = ("a dog on the beach", "two children play football, 3 others watch.", "naïve café – 東京", "x  y")


def train_siglip2_tokenizer(texts: Iterable[str], vocab_size: int, folder: str, max_length: int) -> None:
    """Write a folder with a Siglip2Tokenizer: lower case, ... eos. Equal texts give equal files."""
    texts = list(texts)
    letters = _letters(texts, min(MAX_LETTERS, (vocab_size - len(SPECIAL) - len(BYTES)) // 2))
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # so that no token spans words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *BYTES],
        initial_alphabet=letters,
        limit_alphabet=len(letters),  # the trainer's own choice differs from run to run
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
    """The most frequent letters of the texts in lower case."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text.lower().replace(" ", "▁"))
    return sorted(counts, key=lambda letter: (-counts[letter], letter))[:count]


def load_siglip2_tokenizer(folder: str) -> Any:
    """The tokenizer as transformers will find it in the export, texts in lower case (SigLIP 2, section 2.1).

    Raises RecipeError where it would give other ids than the folder's own.
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
