"""Speed and memory of ingest beside img2dataset: same images, same loopback server, same cores, one after the other.

    python -m benchmarks.ingest --data FOLDER                     # the table; --peer-python: a Python with img2dataset

Images come from --data FOLDER (photographs; enlarged and cropped) or are synthetic: coloured noise with the spectrum of
photographs (amplitude falls as 1 / frequency). The time is that of the whole call, from the list of URLs to the
finished data set, minus that of a call with 20 rows of the same program, so that the start of neither program counts:
neither that of Ray and its workers nor that of img2dataset's processes. img2dataset runs with all --peer-settings on a
quarter of the images; the fastest by wall clock runs on all of them. The server's CPU time is part of the wall clock of
both programs, and of the CPU time of neither.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks.image_peer import PeerSetting, find_peer, parse_settings, run_peer
from benchmarks.image_source import serve, write_images, write_urls
from benchmarks.ingest_table import print_table
from benchmarks.process_watch import TreeWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.images.store_image import store_image
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.recipes.curate import CurateRecipe, ImageRecipe

WARM_ROWS = 2000  # enough that every worker gets a shard, and its decoder starts
START_ROWS = 20  # such a run measures the start; it is subtracted from the results of both programs


@dataclass(frozen=True)
class Case:
    """One kind of work."""

    size: str  # of the images
    resize: str
    num_images: int
    peer: dict[str, Any]  # img2dataset's settings for it
    target: float | None  # ratio to img2dataset's rate


CASES = {
    "640x480 -> 256": Case("640x480", "keep_ratio", 8000, {"resize_mode": "keep_ratio"}, 3.0),
    "2 MP -> 256": Case("2MP", "keep_ratio", 2000, {"resize_mode": "keep_ratio"}, 4.0),
    "640x480 as it is": Case("640x480", "none", 12000, {"resize_mode": "no"}, 8.0),
    "640x480 as it is, peer never decodes": Case(
        "640x480", "none", 12000, {"resize_mode": "no", "disable_all_reencoding": True}, None
    ),
}


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


def measure(name: str, images: int, server: psutil.Process, run: Callable[[], int]) -> Measured:
    """Run something that starts its processes below this one and returns how many images it stored."""
    watch = TreeWatch(os.getpid())
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
    """Images per CPU second of the bare kernel, on all cores at once."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        seconds = pool.map(run_kernel, [(str(folder), resize, images // cores)] * cores, chunksize=1)
    return (images // cores) * cores / sum(seconds)


@dataclass
class CaseRun:
    """One case while it is measured."""

    case: Case
    args: argparse.Namespace
    work: Path
    base: str
    server: psutil.Process

    def go(self, name: str, images: int, run: Callable[[Path, Path], int]) -> Measured:
        """A program on `images` URLs, minus its start; prints its line."""
        sizes = (START_ROWS, START_ROWS + images)
        runs = []
        for rows in sizes:
            table = self.work / f"urls-{rows}.parquet"
            write_urls(table, f"{self.base}/{self.case.size}", rows)
            with tempfile.TemporaryDirectory(dir=self.work) as out:
                runs.append(measure(name, rows, self.server, lambda: run(Path(out) / "out", table)))  # noqa: B023
        whole = without_start(runs[1], runs[0])
        print(whole.row(self.args.cores), flush=True)
        return whole

    def shard_rows(self, images: int) -> int:
        """Four shards per core."""
        return max(100, -(-images // (4 * self.args.cores)))

    def pairloom(self) -> list[Measured]:
        """Our runs."""
        images, resize = self.case.num_images, self.case.resize
        with tempfile.TemporaryDirectory(dir=self.work) as out:  # Ray's workers start once per session
            write_urls(self.work / "warm.parquet", f"{self.base}/{self.case.size}", WARM_ROWS)
            run_pairloom(Path(out) / "out", self.work / "warm.parquet", resize, self.shard_rows(WARM_ROWS))
        return [
            self.go("pairloom", images, lambda out, table: run_pairloom(out, table, resize, self.shard_rows(images)))
            for _ in range(self.args.repeat)
        ]

    def peer(self) -> list[Measured]:
        """img2dataset's runs with the fastest setting on a part of the images."""
        settings = parse_settings(self.args.peer_settings)

        def run(setting: PeerSetting, images: int, name: str) -> Measured:
            shard_rows = self.shard_rows(images)
            python = self.args.peer_python
            return self.go(name, images, lambda out, table: run_peer(
                python, out, table, self.case.peer, setting, shard_rows))  # fmt: skip

        tried = [run(setting, self.case.num_images // 4, f"  tried: {setting}") for setting in settings]
        fastest = settings[int(np.argmax([one.images / one.wall_s for one in tried]))]
        return [run(fastest, self.case.num_images, f"img2dataset, {fastest}") for _ in range(self.args.repeat)]


def run_case(name: str, args: argparse.Namespace, work: Path, base: str, server: psutil.Process) -> dict[str, Any]:
    """All programs on one kind of image; prints and returns their figures."""
    case = CASES[name]
    case = replace(case, num_images=max(800, int(case.num_images * args.scale)))
    folder = work / "images" / case.size
    mean_kb = np.mean([path.stat().st_size for path in folder.iterdir()]) / 1000
    print(f"\n{name}: {case.num_images} images of {mean_kb:.0f} KB, {args.cores} cores")
    print(f"{'':<34} {'img/s/c':>8} {'img/CPUs':>8} {'CPU ms':>7} {'server':>6}   peak RSS MB")
    kernel = measure_kernel(folder, case.resize, 1000 if case.size == "640x480" else 400, args.cores)
    print(f"{'bare kernel':<34} {'':>8} {kernel:>8.1f} {1000 / kernel:>7.2f}", flush=True)
    run = CaseRun(case, args, work, base, server)
    ours = run.pairloom()
    return _summary(name, case, kernel, ours, run.peer() if args.peer_settings else [])


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


def _summary(
    name: str, case: Case, kernel: float, ours: Sequence[Measured], peers: Sequence[Measured]
) -> dict[str, Any]:
    """The best run of each program."""
    return {"case": name, "target": case.target, "kernel_images_per_cpu_s": kernel,
            "pairloom": asdict(max(ours, key=lambda run: run.images / run.wall_s)),
            "peer": asdict(max(peers, key=lambda run: run.images / run.wall_s)) if peers else None}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images of every case")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--case", action="append", choices=list(CASES), help="all unless given")
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--peer-python", help="interpreter that has img2dataset; made when missing")
    parser.add_argument("--peer-settings", nargs="+", default=["2x16", "2x64", "4x16"], metavar="PxT",
                        help="processes x threads")  # fmt: skip
    parser.add_argument("--slow", type=float, default=0.0, help="share of the images that the server sends late")
    parser.add_argument("--slow-s", type=float, default=5.0, help="seconds until it sends them")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if args.no_peer:
        args.peer_settings = []
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    work = Path(tempfile.mkdtemp(prefix="ingest-"))
    try:
        os.environ.setdefault("RAY_worker_niceness", "0")  # as the other program
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        cases = args.case or list(CASES)
        write_images(work / "images", args.data, sorted({CASES[case].size for case in cases}))
        print(f"images: {args.data or 'synthetic (noise with the spectrum of photographs)'}")
        if args.peer_settings:
            args.peer_python = find_peer(args.peer_python, work)
        start_ray()
        with serve(work / "images", args.slow, args.slow_s) as (base, server):
            figures = [run_case(case, args, work, base, server) for case in cases]
            print_table(figures, args.cores)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))
        ray.shutdown()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
