"""Captions and word lists for `benchmarks.curate`, and the cost of caption signals.

Words are drawn by Zipf's law from a made-up vocabulary, nine per caption. A fifth of the captions are copies of another
one with one word changed.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.process_watch import TreeWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.algorithms.minhash import signatures
from pairloom.pipelines.signals.caption_duplicates import measure_caption_duplicates
from pairloom.pipelines.signals.word_list import WordList, WordListSignals
from pairloom.pipelines.signals.wordnet import PARTS
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, table_url
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.data_set.tables import write_table

WORDS_PER_CAPTION = 9
ROWS_PER_SHARD = 10_000


def vocabulary(num_words: int) -> list[str]:
    """Different made-up words of 3 to 8 letters."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words: dict[str, None] = {}
    while len(words) < num_words:
        drawn = letters[draw.integers(0, len(letters), (num_words, 8))]
        lengths = draw.integers(3, 9, num_words)
        words.update(dict.fromkeys("".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)))
    return list(words)[:num_words]


def random_captions(words: list[str], num: int, seed: int) -> list[str]:
    """Captions by Zipf's law; every fifth is the previous one with one word changed."""
    draw = np.random.default_rng(seed)
    indices = (draw.zipf(1.2, (num, WORDS_PER_CAPTION)) - 1) % len(words)
    indices[4::5] = indices[3::5][: len(indices[4::5])]
    indices[4::5, 5] = draw.integers(0, len(words), len(indices[4::5]))
    return [" ".join(words[index] for index in row) for row in indices.tolist()]


def write_wordnet(folder: Path, words: list[str]) -> None:
    """Files as Princeton's WordNet has them: every second word is a noun, every sixth a verb."""
    for part, step in zip(PARTS, (2, 6, 10, 30), strict=True):
        lines = [f"{word} {part[0]} 1 0 1 1 {index:08d}  \n" for index, word in enumerate(words) if index % step == 0]
        (folder / f"index.{part}").write_text("".join(lines))
        (folder / f"{part}.exc").write_text("")


def time_word_list(num_captions: int) -> dict[str, float]:
    """Captions per second per core of the text-based filter: a WordNet of 150,000 words, of which 22,000 count."""
    words = vocabulary(150_000)
    captions = random_captions(words, num_captions, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_wordnet(folder, words)
        (folder / "entries.txt").write_text("".join(f"n{index:08d}\n" for index in range(6_000, 50_000, 2)))
        rules = WordListSignals(kind="word_list", name="x", entries=str(folder / "entries.txt"), wordnet=scratch)
        started_at = time.process_time()
        known = WordList(rules)
        reading = time.process_time() - started_at
        started_at = time.process_time()
        found = sum(known.has_entry(caption) for caption in captions)
        seconds = time.process_time() - started_at
    return {
        "captions": num_captions,
        "with_an_entry": found,
        "cpu_s_to_read_the_lists": round(reading, 2),
        "captions_per_s_core": round(num_captions / seconds),
    }


def write_raw(folder: Path, num_captions: int) -> None:
    """Raw tables with the columns that signals of captions read; no tars."""
    words = vocabulary(150_000)
    shards = []
    for index, start in enumerate(range(0, num_captions, ROWS_PER_SHARD)):
        num = min(ROWS_PER_SHARD, num_captions - start)
        uids = [f"{row:032x}" for row in range(start, start + num)]
        columns = {"uid": uids, "caption": random_captions(words, num, index), "status": ["success"] * num}
        write_table(table_url(str(folder), shard_name(index)), pa.table(columns))
        shards.append(ShardEntry(shard_name(index), num, num, 0))
    save_manifest(str(folder), Manifest("raw", "raw", "0" * 64, [], shards))


def time_minhash(num_captions: int, out: Path) -> dict[str, float]:
    """Signatures per second per core; CPU time and peak memory of the whole signal over raw tables."""
    texts = random_captions(vocabulary(150_000), 50_000, seed=0)
    signatures(texts[:10])  # compiles
    started_at = time.process_time()
    signatures(texts)
    alone = time.process_time() - started_at
    write_raw(out / "raw", num_captions)
    start_ray()
    watch = TreeWatch(os.getpid())
    watch.start()
    started_at = time.perf_counter()
    measure_caption_duplicates("captions", 0.8, str(out / "raw"), str(out / "signal"))
    seconds, cpu_s = time.perf_counter() - started_at, watch.stop()
    return {
        "captions": num_captions,
        "characters_per_caption": round(float(np.mean([len(text) for text in texts])), 1),
        "signatures_per_s_core": round(len(texts) / alone),
        "s": round(seconds, 1),
        "cpu_s_per_million": round(cpu_s / num_captions * 1e6, 1),
        "worker_peak_mb": round(max(watch.peaks.get("worker", 0), watch.peaks.get("idle worker", 0))),
        "driver_peak_mb": round(watch.peaks["driver"]),
    }
