"""Speed and memory of ingest beside img2dataset: same images, same loopback server, same cores, one after the other.

    python benchmarks/ingest.py --images 2000                     # the table
    python benchmarks/ingest.py --rows 1000000 --tiny             # is memory flat?

Pictures come from --data FOLDER (photographs; enlarged and cropped) or are made: coloured noise with the spectrum of
photographs (amplitude falls as 1 / frequency). What is timed is the whole call, from the list of URLs to the finished
data set, less a call with 20 rows of the same program: Ray and its workers run already, and the start of
img2dataset's processes counts no more than theirs. Machines are shared: beside the wall clock
stands the CPU time of the whole process tree, of which images per CPU second is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from image_source import serve, write_pictures, write_urls
from process_watch import TreeWatch

from cluster.ray_session import start_ray
from pipelines.image import store_image
from pipelines.ingest import ingest
from schemas.curate_recipe import CurateRecipe, ImageRecipe
from schemas.manifest import load_manifest

CASES = {"640x480 -> 256": ("640x480", "keep_ratio"), "2 MP -> 256": ("2MP", "keep_ratio"),
         "640x480 as it is": ("640x480", "none")}  # fmt: skip
TARGETS = {"640x480 -> 256": 3.0, "2 MP -> 256": 4.0, "640x480 as it is": 8.0}
PEER = "img2dataset==1.47.0"
START_ROWS = 20  # a run of so few is all start; it is taken off both programs' figures


@dataclass
class Measured:
    """One run of one program."""

    name: str
    images: int
    wall_s: float
    cpu_s: float  # of the process tree
    server_cpu_s: float
    peak_rss_mb: dict[str, float]  # by kind of process

    def row(self, cores: int) -> str:
        """A line of the table."""
        peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in sorted(self.peak_rss_mb.items()))
        return (
            f"{self.name:<34} {self.images / self.wall_s / cores:>8.1f} {self.images / self.cpu_s:>8.1f} "
            f"{1000 * self.cpu_s / self.images:>7.2f} {self.server_cpu_s / self.wall_s:>6.0%}   {peaks}"
        )


def measure(
    name: str, images: int, server: psutil.Process, run: Callable[[], int], log: Path | None = None
) -> Measured:
    """Run something that starts its processes below this one and returns how many images it stored."""
    watch = TreeWatch(os.getpid(), log)
    watch.start()
    before = server.cpu_times()
    started_at = time.monotonic()
    stored = run()
    wall_s = time.monotonic() - started_at
    cpu_s = watch.stop()
    after = server.cpu_times()
    server_s = after.user + after.system - before.user - before.system
    if stored != images:
        raise SystemExit(f"{name}: {stored} of {images} images were stored")
    return Measured(name, images, wall_s, cpu_s - server_s, server_s, watch.peaks)


def run_pairloom(root: Path, table: Path, resize: str, shard_rows: int) -> int:
    """The ingest step; returns the samples that are in the manifest."""
    recipe = CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "url_table", "path": str(table)},
            "ingest": {
                "samples_per_shard": shard_rows,
                "image": {"resize": resize, "size": 256},
                "fetch": {"allow_private_addresses": True, "per_host": 64, "timeout_s": 60},
            },
        }
    )
    return load_manifest(ingest(recipe)).num_samples


PEER_CODE = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


def run_peer(python: str, root: Path, table: Path, resize: str, settings: dict[str, int]) -> int:
    """img2dataset as a process of its own; its start is in the figure."""
    arguments: dict[str, Any] = {
        "url_list": str(table), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": str(root), "output_format": "webdataset", "image_size": 256, "resize_only_if_bigger": True,
        "resize_mode": "no" if resize == "none" else resize, "encode_quality": 95, "skip_reencode": True,
        "disable_all_reencoding": resize == "none", "compute_hash": "sha256", "enable_wandb": False,
        "timeout": 60, **settings,
    }  # fmt: skip
    script = root.with_suffix(".py")
    script.write_text(PEER_CODE)
    subprocess.run([python, str(script), json.dumps(arguments)], check=True, capture_output=True)
    return sum(json.loads(path.read_text())["successes"] for path in root.glob("*_stats.json"))


def find_peer(python: str | None, folder: Path) -> str:
    """The interpreter that has img2dataset; an environment is made where none is given."""
    if python:
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder / "peer")], check=True)
    subprocess.run([str(folder / "peer/bin/pip"), "install", "--quiet", PEER], check=True)
    return str(folder / "peer/bin/python")


def run_kernel(arguments: tuple[str, str, int]) -> float:
    """`store_image` in a loop, one process, no network; CPU seconds."""
    folder, resize, images = arguments
    bodies = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    recipe = ImageRecipe.model_validate({"resize": resize, "size": 256})
    store_image(bodies[0], recipe)
    started_s = time.process_time()
    for index in range(images):
        store_image(bodies[index % len(bodies)], recipe)
    return time.process_time() - started_s


def measure_kernel(folder: Path, resize: str, images: int, cores: int) -> float:
    """Images a CPU second of the bare kernel, on all cores at once."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        seconds = pool.map(run_kernel, [(str(folder), resize, images // cores)] * cores, chunksize=1)
    return (images // cores) * cores / sum(seconds)


def run_case(case: str, args: argparse.Namespace, work: Path, base: str, server: psutil.Process) -> dict[str, Any]:
    """All programs on one kind of image; prints and returns their figures."""
    size, resize = CASES[case]
    mean_kb = np.mean([path.stat().st_size for path in (work / "pictures" / size).iterdir()]) / 1000
    print(f"\n{case}: {args.images} images of {mean_kb:.0f} KB, {args.cores} cores")
    print(f"{'':<34} {'img/s/c':>8} {'img/CPUs':>8} {'CPU ms':>7} {'server':>6}   peak RSS MB")
    table = work / "urls.parquet"
    write_urls(table, f"{base}/{size}", args.images)
    shard_rows = max(100, args.images // (4 * args.cores))
    kernel = measure_kernel(work / "pictures" / size, resize, min(args.images, 1000), args.cores)
    print(f"{'bare kernel':<34} {'':>8} {kernel:>8.1f} {1000 / kernel:>7.2f}", flush=True)
    runs: list[Measured] = []

    write_urls(work / "few.parquet", f"{base}/{size}", START_ROWS)

    def go(name: str, run: Callable[[Path, Path], int]) -> None:
        with tempfile.TemporaryDirectory(dir=work) as out:
            start = measure(name, START_ROWS, server, lambda: run(Path(out) / "few", work / "few.parquet"))
            whole = measure(name, args.images, server, lambda: run(Path(out) / "out", table))
        runs.append(without_start(whole, start))
        print(runs[-1].row(args.cores), flush=True)

    with tempfile.TemporaryDirectory(dir=work) as out:
        run_pairloom(Path(out) / "out", table, resize, 20)  # Ray's workers start once a session
    for _ in range(args.repeat):
        go("pairloom", lambda out, urls: run_pairloom(out, urls, resize, shard_rows))
        for threads in args.peer_threads:
            settings = {"processes_count": args.cores, "thread_count": threads, "number_sample_per_shard": shard_rows}
            go(f"img2dataset, {threads} threads",
               lambda out, urls, s=settings: run_peer(args.peer_python, out, urls, resize, s))  # type: ignore[misc]  # fmt: skip
    return _summary(case, runs, kernel, args.cores)


def without_start(whole: Measured, start: Measured) -> Measured:
    """The steady rate: a run less one of START_ROWS."""
    return Measured(
        whole.name,
        whole.images - start.images,
        max(whole.wall_s - start.wall_s, 0.1),
        max(whole.cpu_s - start.cpu_s, 0.1),
        max(whole.server_cpu_s - start.server_cpu_s, 0.0),
        whole.peak_rss_mb,
    )


def _summary(case: str, runs: Sequence[Measured], kernel: float, cores: int) -> dict[str, Any]:
    """Best of each program against each other."""
    ours = [run for run in runs if run.name == "pairloom"]
    peers = [run for run in runs if run.name != "pairloom"]
    by_wall = max(run.images / run.wall_s for run in ours) / max(run.images / run.wall_s for run in peers)
    best_cpu = max(run.images / run.cpu_s for run in ours)
    by_cpu = best_cpu / max(run.images / run.cpu_s for run in peers)
    wall_share = max(run.images / run.wall_s for run in ours) / cores / kernel
    print(
        f"pairloom / img2dataset: {by_wall:.2f} by wall clock, {by_cpu:.2f} by CPU time (target {TARGETS[case]}); "
        f"of the bare kernel: {wall_share:.0%} by wall clock, {best_cpu / kernel:.0%} by CPU time"
    )
    return {"case": case, "kernel_images_per_cpu_s": kernel, "ratio_wall": by_wall, "ratio_cpu": by_cpu,
            "share_of_kernel_wall": wall_share, "share_of_kernel_cpu": best_cpu / kernel,
            "runs": [asdict(run) for run in runs]}  # fmt: skip


def run_long(args: argparse.Namespace, work: Path, base: str, server: psutil.Process) -> dict[str, Any]:
    """Many rows of tiny images, and what memory does meanwhile."""
    table, log = work / "urls.parquet", Path(args.log or work / "memory.jsonl")
    write_urls(table, f"{base}/tiny", args.rows, args.slow_every)
    run = measure(
        "pairloom", args.rows, server, lambda: run_pairloom(work / "long", table, "none", args.shard_rows), log
    )
    print(run.row(args.cores))
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    growth = {}
    for name in ("driver", "worker", "decoder"):
        values = [sample[name] for sample in samples if name in sample]
        if len(values) < 10:
            continue
        fifth = len(values) // 5
        early, late = np.median(values[fifth : 2 * fifth]), np.median(values[-fifth:])
        growth[name] = float(late - early)
        print(f"{name}: {early:.0f} MB in the second fifth, {late:.0f} MB in the last: {late - early:+.0f} MB")
    return {"rows": args.rows, "growth_mb": growth, "run": asdict(run)}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--case", action="append", choices=list(CASES), help="all unless given")
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--peer-python", help="interpreter that has img2dataset; made when missing")
    parser.add_argument("--peer-threads", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--rows", type=int, help="with --tiny: rows of the long run")
    parser.add_argument("--tiny", action="store_true", help="the long run for memory, tiny images kept as they are")
    parser.add_argument("--shard-rows", type=int, default=10_000)
    parser.add_argument("--slow-every", type=int, default=0, help="every n-th URL takes 5 s")
    parser.add_argument("--log", help="memory over time, JSON lines")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if args.no_peer:
        args.peer_threads = []
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    work = Path(tempfile.mkdtemp(prefix="ingest-"))
    try:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        cases = args.case or list(CASES)
        write_pictures(
            work / "pictures", args.data, ["tiny"] if args.tiny else sorted({CASES[case][0] for case in cases})
        )
        print(f"pictures: {args.data or 'made (noise with the spectrum of photographs)'}")
        if args.peer_threads and not args.tiny:
            args.peer_python = find_peer(args.peer_python, work)
        start_ray()
        with serve(work / "pictures") as (base, server):
            figures = [run_long(args, work, base, server)] if args.tiny else [
                run_case(case, args, work, base, server) for case in cases]  # fmt: skip
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))
        ray.shutdown()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
