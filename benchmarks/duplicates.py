"""Cost of the finer criteria of dedupe: 256-bit hashes, features against an evaluation set, pixels.

    python -m benchmarks.duplicates wide --num 1000000
    python -m benchmarks.duplicates features --num 1000000
    python -m benchmarks.duplicates pixels FOLDER      # of photographs

Hashes are random, a tenth of them another one with up to 8 bits flipped. Every line is one JSON object. Near captions:
`python -m benchmarks.curate minhash`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from pairloom.pipelines.algorithms.hamming256 import distance256, find_pairs256
from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.dedupe.criteria.feature_contamination import nearest_in_set
from pairloom.pipelines.images.hashes import exact_hash, hash_pixels, phash256
from pairloom.pipelines.images.store_image import store_image
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.recipes.curate import ImageRecipe


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Cost of the finer criteria of dedupe on this machine."""


@main.command()
@click.option("--num", type=int, default=1_000_000, help="Hashes.")
@click.option("--radius", default=8, help="Bits.")
def wide(num: int, radius: int) -> None:
    """All near pairs of 256-bit hashes in one process, with recall on a sample."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, (num, 4), dtype=np.uint64)
    copies = generator.integers(0, num, num // 10)
    hashes[: len(copies)] = hashes[copies]
    for _ in range(8):
        word, bit = generator.integers(0, 4, len(copies)), generator.integers(0, 64, len(copies), dtype=np.uint64)
        hashes[np.arange(len(copies)), word] ^= np.uint64(1) << bit
    hashes = np.unique(hashes, axis=0)
    find_pairs256(hashes[:1000], radius)  # compile
    start = time.perf_counter()
    pairs = find_pairs256(hashes, radius)
    seconds = time.perf_counter() - start
    true = found = 0
    for query in range(0, len(hashes), len(hashes) // 200):
        near = np.flatnonzero(distance256(hashes, hashes[query]) <= radius)
        true += len(near) - 1
        found += int(((pairs.left == query) | (pairs.right == query)).sum())
    print(json.dumps({"hashes": len(hashes), "radius": radius, "s": round(seconds, 1), "num_pairs": len(pairs.left),
                      "recall": found / max(1, true)}))  # fmt: skip


@main.command()
@click.option("--num", type=int, default=1_000_000, help="Images.")
@click.option("--evaluation", type=int, default=5_000, help="Evaluation images.")
@click.option("--width", type=int, default=512, help="Numbers per feature.")
def features(num: int, evaluation: int, width: int) -> None:
    """Features of images against those of an evaluation set, in one process."""
    generator = np.random.default_rng(0)
    held_out = normalised(generator.standard_normal((evaluation, width), np.float32))
    block = generator.standard_normal((50_000, width), np.float32).astype(np.float16)
    start = time.perf_counter()
    for _ in range(-(-num // len(block))):
        nearest_in_set(block, held_out, 0.95)
    print(json.dumps({"images": num, "evaluation": evaluation, "width": width,
                      "s": round(time.perf_counter() - start, 1)}))  # fmt: skip


@main.command()
@click.argument("folder", type=Path)
def pixels(folder: Path) -> None:
    """CPU milliseconds of hashes and of storing an image; the minimum of three rounds."""
    data = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    decoded = [decode_rgb(one) for one in data]
    recipe = ImageRecipe()
    measured: dict[str, Any] = {"images": len(data)}
    measured["store"] = _minimum_ms(lambda index: store_image(data[index], recipe), len(data))
    measured["exact_hash"] = _minimum_ms(lambda index: exact_hash(decoded[index], decoded[index].shape[:2]), len(data))
    measured["phash"] = _minimum_ms(lambda index: hash_pixels(decoded[index]), len(data))
    measured["phash256"] = _minimum_ms(lambda index: phash256(decoded[index]), len(data))
    print(json.dumps(measured))


def _minimum_ms(work: Callable[[int], object], num: int) -> float:
    work(0)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for index in range(num):
            work(index)
        seconds.append(time.process_time() - start)
    return round(min(seconds) / num * 1000, 3)


if __name__ == "__main__":
    main()
