"""Normalised captions: without differences of case, character width and spaces."""

from __future__ import annotations

import hashlib
import unicodedata


def normalise_caption(caption: str) -> str:
    """The caption in Unicode NFKC, case-folded, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def caption_hash(caption: str) -> int:
    """64-bit hash of the normalised caption."""
    text = normalise_caption(caption)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
