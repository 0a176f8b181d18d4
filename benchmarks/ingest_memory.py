"""Memory of ingest: over many rows, and with many large bodies in flight.

    python -m benchmarks.ingest_memory --rows 1000000      # tiny images kept as they are: is memory flat?
    python -m benchmarks.ingest_memory --bodies 512        # bodies of 20 MB, 256 in flight per worker

Prints the memory (RSS) of the largest process of each kind: over the rows in the first case, its peak in both. With
--bodies all bodies arrive at the same time, so that no image is complete before all are in flight.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.image_source import make_image, serve, write_images, write_urls
from benchmarks.process_watch import TreeWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.recipes.curate import CurateRecipe

BODY_BYTES = 20_000_000  # the default of fetch.max_bytes
BODY_SIDES = (3000, 2000)  # px
NUM_BODIES = 4  # different ones
NUM_LINES = 10  # of the table
KINDS = ("driver", "worker", "decoder", "ray", "idle worker")


def write_bodies(folder: Path) -> None:
    """JPEGs of 6 megapixels, with zeros behind their end up to 20 MB."""
    folder.mkdir(parents=True)
    for index in range(NUM_BODIES):
        path = folder / f"{index:04d}.jpg"
        make_image(np.random.default_rng(index), BODY_SIDES).save(path, quality=92)
        size = path.stat().st_size
        if size > BODY_BYTES:
            raise SystemExit(f"the image has {size} bytes, more than {BODY_BYTES}")
        path.write_bytes(path.read_bytes() + bytes(BODY_BYTES - size))


def run(root: Path, table: Path, resize: str, shard_rows: int) -> str:
    """The ingest step; returns its folder."""
    fetch = {"allow_private_addresses": True, "per_host": 4096, "timeout_s": 3600, "first_byte_timeout_s": 3600}
    recipe = {
        "root": str(root),
        "source": {"kind": "url_table", "path": str(table)},
        "ingest": {"samples_per_shard": shard_rows, "image": {"resize": resize}, "fetch": fetch},
    }
    return ingest(CurateRecipe.model_validate(recipe))


def rows_over_time(folder: str) -> tuple[list[float], list[int]]:
    """Seconds since the epoch, and finished rows, from the metrics of the step."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    times = [datetime.datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    return times, [line["rows"] for line in lines]


def print_curve(log: Path, folder: str, num_rows: int) -> None:
    """Median MB of each kind of process in each tenth of the rows."""
    times, rows = rows_over_time(folder)
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    done = np.interp([sample["at_s"] for sample in samples], times, rows)
    print(f"{'rows up to':>12}" + "".join(f"{kind:>13}" for kind in KINDS) + "   MB")
    for tenth in range(NUM_LINES):
        low, high = num_rows * tenth / NUM_LINES, num_rows * (tenth + 1) / NUM_LINES
        inside = [sample for sample, row in zip(samples, done, strict=True) if low < row <= high]
        medians = [np.median([one[kind] for one in inside if kind in one] or [np.nan]) for kind in KINDS]
        print(f"{high:>12,.0f}" + "".join(f"{median:>13.0f}" for median in medians))


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One run; prints and returns its figures."""
    num_rows = args.rows or args.bodies
    size, resize = ("tiny", "none") if args.rows else ("bodies", "keep_ratio")
    if args.rows:
        write_images(work / "images", None, [size])
    else:
        write_bodies(work / "images" / size)
    log = Path(args.log or work / "memory.jsonl")
    start_ray()
    with serve(work / "images") as (base, _):
        write_urls(work / "urls.parquet", f"{base}/{size}", num_rows)
        watch = TreeWatch(os.getpid(), log)
        watch.start()
        started_at = time.monotonic()
        folder = run(work / "out", work / "urls.parquet", resize, args.shard_rows)
        seconds = time.monotonic() - started_at
        watch.stop()
    if args.rows:
        print_curve(log, folder, num_rows)
    manifest = load_manifest(folder)
    peaks = {kind: round(watch.peaks.get(kind, 0.0)) for kind in KINDS}
    print(f"{manifest.num_samples} of {num_rows} images in {seconds:.0f} s; drops {dict(manifest.drop_counts)}")
    print("peak MB: " + ", ".join(f"{kind} {peak}" for kind, peak in peaks.items()))
    return {"rows": num_rows, "kept": manifest.num_samples, "seconds": seconds, "peak_mb": peaks}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rows", type=int, help="tiny images")
    what.add_argument("--bodies", type=int, help="images of 20 MB")
    parser.add_argument("--shard-rows", type=int, help="default: 10,000 tiny images, 256 large ones")
    parser.add_argument("--log", help="memory over time, JSON lines")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    args.shard_rows = args.shard_rows or (10_000 if args.rows else 256)
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    work = Path(tempfile.mkdtemp(prefix="ingest-memory-"))
    try:
        figures = measure(args, work)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))
        ray.shutdown()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
