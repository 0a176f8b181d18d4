"""Captions compared without case, width and spacing."""

from __future__ import annotations

import hashlib
import unicodedata


def normalise_caption(caption: str) -> str:
    """NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def caption_hash(caption: str) -> int:
    """64 bits that are equal for captions equal after NFKC, case folding and collapsing of spaces."""
    text = normalise_caption(caption)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
