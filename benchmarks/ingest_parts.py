"""Where the CPU time of an image goes: of one worker and its decoder by process, and of the kernel by part.

    python -m benchmarks.ingest_parts --data FOLDER
    py-spy record --subprocesses -f raw -o frames.txt -- python -m benchmarks.ingest_parts --case 2MP
    python -m benchmarks.ingest_parts --frames frames.txt       # the frames in which most samples end

One shard in this process, without Ray; a shard of 50 rows before it starts the decoder. The time of a part is the
median over the images of the fastest of five rounds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.image_source import serve, write_images, write_urls
from pairloom.pipelines.images import decoder_child, store_image
from pairloom.pipelines.ingest.shard import ShardJob, make_shard
from pairloom.pipelines.sources.source import Piece
from pairloom.schemas.recipes.curate import CurateRecipe, ImageRecipe

CASES = {"640x480": ("640x480", "keep_ratio", 2000), "2MP": ("2MP", "keep_ratio", 500),
         "kept": ("640x480", "none", 3000)}  # fmt: skip
PARTS = ("_checked_header", "_decode", "_scale_whole", "hash_pixels", "sha256_hex", "encode", "store_image")
WARM_ROWS = 50
NUM_ROUNDS = 5
SHARD_FRAMES = ("make_shard (", "ImageWorkers._feed (", "_Child.serve (")


def seconds_of(process: psutil.Process) -> float:
    """CPU time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure_shard(case: str, work: Path) -> str:
    """CPU time by process of one shard."""
    size, resize, rows = CASES[case]
    table = work / "urls.parquet"
    with serve(work / "images") as (base, server):
        write_urls(table, f"{base}/{size}", rows + WARM_ROWS)
        recipe = CurateRecipe.model_validate({
            "root": str(work),
            "source": {"kind": "url_table", "path": str(table)},
            "ingest": {"image": {"resize": resize}, "fetch": {"allow_private_addresses": True, "per_host": 64}},
        })  # fmt: skip

        def make(index: int, first: int, end: int) -> None:
            piece = Piece(str(table), str(table), first, end)
            make_shard(ShardJob(recipe.source, recipe.ingest, str(work / f"raw-{case}"), index, (piece,)))

        make(0, rows, rows + WARM_ROWS)
        worker = psutil.Process()
        decoder = next(child for child in worker.children() if decoder_child.__name__ in " ".join(child.cmdline()))
        processes = {"worker": worker, "decoder": decoder, "server": server}
        before = {name: seconds_of(process) for name, process in processes.items()}
        started_at = time.monotonic()
        make(1, 0, rows)
        wall_s = time.monotonic() - started_at
        spent = {name: 1000 * (seconds_of(process) - before[name]) / rows for name, process in processes.items()}
    figures = ", ".join(f"{name} {ms:.2f}" for name, ms in spent.items())
    return f"CPU ms per image: {figures}; {rows / wall_s:.0f} images/s with one worker"


def measure_parts(case: str, folder: Path) -> dict[str, float]:
    """Milliseconds of each part of `store_image`, and of the whole."""
    _, resize, _ = CASES[case]
    recipe = ImageRecipe.model_validate({"resize": resize, "size": 256})
    bodies = [path.read_bytes() for path in sorted(folder.iterdir())]
    spent: dict[str, float] = defaultdict(float)
    originals = {name: getattr(store_image, name) for name in PARTS}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started_s = time.thread_time()
            result = function(*arguments)
            spent[name] += 1000 * (time.thread_time() - started_s)
            return result

        return call

    rounds: list[list[dict[str, float]]] = []
    try:
        for name, function in originals.items():
            setattr(store_image, name, timed(name, function))
        for _ in range(NUM_ROUNDS):
            rounds.append([])
            for body in bodies:
                spent.clear()
                store_image.store_image(body, recipe)
                rounds[-1].append(dict(spent))
    finally:
        for name, function in originals.items():
            setattr(store_image, name, function)
    return {name: float(np.median([min(one.get(name, 0.0) for one in of_one) for of_one in zip(*rounds, strict=True)]))
            for name in PARTS}  # fmt: skip


def print_frames(path: Path, num_shown: int = 25) -> None:
    """The innermost frames of a raw py-spy recording, of the code that makes shards, without samples that only wait."""
    ends: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if not any(name in stack for name in SHARD_FRAMES):
            continue
        ends[stack.rpartition(";")[2]] += int(count)
    for frame, num_samples in ends.most_common(num_shown):
        print(f"{num_samples / ends.total():6.1%}  {frame}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; without it images are synthetic")
    parser.add_argument("--case", action="append", choices=list(CASES), help="all unless given")
    parser.add_argument("--shard-only", action="store_true", help="without the parts of the kernel, for recordings")
    parser.add_argument("--frames", type=Path, help="a recording of py-spy to summarise instead")
    args = parser.parse_args()
    if args.frames:
        print_frames(args.frames)
        return
    cases = args.case or list(CASES)
    work = Path(tempfile.mkdtemp(prefix="ingest-parts-"))
    try:
        write_images(work / "images", args.data, sorted({CASES[case][0] for case in cases}))
        for case in cases:
            print(f"{case}: {measure_shard(case, work)}", flush=True)
            if args.shard_only:
                continue
            parts = measure_parts(case, work / "images" / CASES[case][0])
            print("  kernel: " + ", ".join(f"{name.strip('_')} {ms:.3f}" for name, ms in parts.items() if ms))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
