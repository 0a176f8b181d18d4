"""Dedupe at scale: near pairs of 64-bit hashes beside peers on the same input, and semantic dedupe.

    python -m benchmarks.dedupe hashes --num 1000000 --num 10000000 --peers PYTHON
    python -m benchmarks.dedupe hashes --skew FOLDER     # bits distributed as in the photographs of FOLDER
    python -m benchmarks.dedupe semantic --num 1000000
    python -m benchmarks.dedupe step --num 1000000       # the whole step over tables of that many samples

Hashes are random, or drawn like those of photographs, with planted groups (copies with 1 to 3 bits flipped). Recall is
counted by brute force over a sample. `s` is the whole search on Ray, `cpu_s_one_process` the search alone; `exponent`
is the latter's growth since the last size. Peers run in another Python (`hash_peers`); `ratio` is the CPU time of a
peer divided by ours. Every line is one JSON object.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import psutil
import ray

from benchmarks.hash_peers import PEERS, measure_peer
from benchmarks.photograph_hashes import draw_like, hash_folder
from benchmarks.process_watch import TreeWatch
from benchmarks.raw_tables import ROWS_PER_SHARD, write_raw
from benchmarks.spill_watch import SpillWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.algorithms.hamming64 import count_near
from pairloom.pipelines.algorithms.hamming_pairs import Pairs, as_pairs, find_pairs
from pairloom.pipelines.algorithms.unique_sorted import unique_sorted
from pairloom.pipelines.dedupe.decide import Context
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS
from pairloom.pipelines.dedupe.links.candidate_links import SearchPlan, plan_search
from pairloom.pipelines.dedupe.rounds import Job, Plan, Tables
from pairloom.pipelines.dedupe.semantic_rounds import decide_semantic
from pairloom.pipelines.engine.batches import Batch, Folders
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import SpillTable, pack
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.dedupe import DedupeRecipe

Hashes = npt.NDArray[np.uint64]
GROUP_SHARE = 0.1  # of the hashes are copies of another
HASHES_PER_FILE = 1_000_000
SHARDS_PER_BATCH = 4


def make_hashes(num: int, photographs: Hashes | None, seed: int = 0) -> Hashes:
    """Distinct hashes, a tenth of them planted near another."""
    generator = np.random.default_rng(seed)
    if photographs is None:
        hashes = generator.integers(0, 2**64, num, dtype=np.uint64)
    else:
        hashes = draw_like(photographs, num, generator)
    num_copies = int(num * GROUP_SHARE)
    copies = hashes[generator.integers(0, num, num_copies)]
    for _ in range(3):
        copies ^= np.uint64(1) << generator.integers(0, 64, num_copies, dtype=np.uint64)
    hashes[generator.permutation(num)[:num_copies]] = copies
    return unique_sorted(hashes)


def recall_of_sample(hashes: Hashes, pairs: Pairs, radius: int, num_queries: int = 500) -> float:
    """Share of the pairs of some hashes, by brute force, that were found. Raises where a found pair is none."""
    queries = np.random.default_rng(1).choice(len(hashes), num_queries, replace=False)
    num_true = sum(int(count_near(hashes, len(hashes), hashes[query], radius)) - 1 for query in queries)
    is_query = np.zeros(len(hashes), bool)
    is_query[queries] = True
    found = [np.flatnonzero(is_query[side]) for side in (pairs.left, pairs.right)]
    for indices in found:
        distances = np.bitwise_count(hashes[pairs.left[indices]] ^ hashes[pairs.right[indices]])
        if (distances > radius).any():
            raise SystemExit(f"a pair was found whose hashes are {distances.max()} bits apart")
    return sum(map(len, found)) / max(1, num_true)


def search_on_ray(hashes: Hashes, radius: int, folder: str) -> Pairs:
    """All pairs, as the step finds them: hashes to files by bucket, one task per part of the search."""
    plan = plan_search(len(hashes), radius, 0, DEFAULT_LIMITS.hashes_per_partition)
    starts = range(0, len(hashes), HASHES_PER_FILE)
    table = SpillTable(folder, len(starts), plan.num_tasks)
    shared = [ray.put(hashes)]  # in a list, so that a task takes the reference and not a copy
    run_shards("hashes", partial(_write_file, table, plan, shared), range(len(starts)))
    found = run_shards("search", partial(plan.links, table), range(plan.num_tasks))
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    return as_pairs(hashes, left, right)


def _write_file(table: SpillTable, plan: SearchPlan, shared: list[Any], file: int) -> None:
    hashes = ray.get(shared[0])[file * HASHES_PER_FILE : (file + 1) * HASHES_PER_FILE]
    plan.write_unique_hashes(table, file, hashes)


def measure_hashes(hashes: Hashes, radius: int) -> dict[str, Any]:
    """Our search on Ray."""
    with tempfile.TemporaryDirectory() as folder:
        search_on_ray(make_hashes(20_000, None), radius, f"{folder}/compile")  # workers have started
        cpu_seconds(make_hashes(20_000, None), radius)  # and this process has compiled
        watch = TreeWatch(os.getpid())
        watch.start()
        start = time.perf_counter()
        pairs = search_on_ray(hashes, radius, f"{folder}/spill")
        seconds = time.perf_counter() - start
        cpu = watch.stop()
    return {
        "s": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "cpu_s_one_process": round(cpu_seconds(hashes, radius), 2),
        "num_pairs": len(pairs.left),
        "peak_gb": round(peak_gb(), 2),
        "recall": recall_of_sample(hashes, pairs, radius),
    }


def cpu_seconds(hashes: Hashes, radius: int) -> float:
    """The same search in this process."""
    start = time.process_time()
    find_pairs(hashes, radius)
    return time.process_time() - start


def peak_gb() -> float:
    """Sum of the peak memory of this process and its descendants; shared pages count in each."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        status = Path(f"/proc/{process.pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return total / 2**20


def write_features(folder: str, job: Job, num: int, width: int) -> list[Batch]:
    """Images left by the first rounds, with features around 5,000 random directions, a tenth planted near another."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((5000, width), dtype=np.float32)
    batches = []
    for index, first in enumerate(job.plan.first_shards):
        shards = range(first, min(first + SHARDS_PER_BATCH, num // ROWS_PER_SHARD))
        batches.append(Batch(index, Folders(folder, features=folder), tuple((shard, str(shard)) for shard in shards)))
        for shard in shards:
            rows = centres[generator.integers(0, 5000, ROWS_PER_SHARD)]
            rows = rows + 0.9 * generator.standard_normal(rows.shape, dtype=np.float32)
            copies = rows[: ROWS_PER_SHARD // 10]
            rows[-len(copies) :] = copies + 0.1 * generator.standard_normal(copies.shape, dtype=np.float32)
            np.save(Path(folder) / f"{shard}.image_features.npy", rows.astype(np.float16))
    order = np.arange(num)
    uids = generator.integers(0, 2**63, (num, 2)).astype(np.uint64)
    left = pack(
        {
            "uid": uids,
            "shard": (order // ROWS_PER_SHARD).astype(np.int32),
            "row": (order % ROWS_PER_SHARD).astype(np.int32),
            "area": np.zeros(num, np.int64),
            "score": np.zeros(num, np.float32),
            "preference": np.zeros(num, np.int32),
            "part": np.zeros(num, np.int32),
            "group": uids,
            "group_size": np.ones(num, np.int64),
        }
    )
    job.tables.left.write(0, left, job.plan.batch_of(left["shard"]))
    decided = {"shard": left["shard"], "row": left["row"], "reason": np.zeros(num, np.int8), "image": uids,
               "kept_instead": uids, "distance": np.zeros(num, np.int32), "group": uids,
               "similarity": np.full(num, np.nan, np.float32)}  # fmt: skip
    job.tables.drafts.write(0, pack(decided), np.zeros(num, np.int64))
    return batches


def measure_semantic(num: int, width: int) -> dict[str, Any]:
    """The semantic rounds on Ray."""
    settings = DedupeRecipe.model_validate({"semantic": {"features": "clip"}})
    with tempfile.TemporaryDirectory() as folder:
        first_shards = tuple(range(0, num // ROWS_PER_SHARD, SHARDS_PER_BATCH))
        plan = Plan(num, first_shards, 1, plan_search(num, 0, 0, DEFAULT_LIMITS.hashes_per_partition), DEFAULT_LIMITS)
        context = [ray.put(Context([], [], [], num // ROWS_PER_SHARD, np.ones(len(first_shards), bool)))]
        job = Job(settings, plan, Tables(folder, plan), context)
        batches = write_features(folder, job, num, width)
        start = time.perf_counter()
        sizes = decide_semantic(job, batches, num)
        seconds = time.perf_counter() - start
        job.tables.decisions = SpillTable(job.tables.decisions.folder, 1, len(first_shards))
        dropped = sum(int((job.tables.decisions.read(part)["reason"] > 0).sum()) for part in range(len(first_shards)))
    return {
        "s": round(seconds, 1),
        "num_dropped": dropped,
        "num_planted": num // 10,
        "num_groups": sizes.num_of_several,
    }


def measure_step(num: int) -> dict[str, Any]:
    """The whole step, from raw tables to the tables of decisions."""
    with tempfile.TemporaryDirectory() as root:
        raw = write_raw(Path(root), num)
        recipe = CurateRecipe.model_validate({"root": root, "source": {"kind": "folder", "path": "unused"}})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        watch, spill_watch = TreeWatch(os.getpid()), SpillWatch(root)
        watch.start()
        spill_watch.start()
        start = time.perf_counter()
        folder = dedupe(recipe, raw, {})
        seconds = time.perf_counter() - start
        cpu_s = watch.stop()
        num_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        counts = dict(load_manifest(folder).drop_counts)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "s": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "dropped": counts,
        "driver_grew_by_bytes_per_sample": round(grown * 1024 / num, 1),
        "largest_worker_gb": round(watch.peaks.get("worker", 0) / 1024, 2),
        "table_bytes_per_sample": round(num_bytes / num, 1),
        "spill_bytes_per_sample": round(spill_watch.stop() / num),
    }


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Cost of dedupe on this machine."""
    start_ray()


@main.command()
@click.option("--num", multiple=True, type=int, default=[1_000_000], help="Hashes; may be given several times.")
@click.option("--skew", type=Path, default=None, help="A folder of photographs whose bits the hashes follow.")
@click.option("--radius", default=3, help="Bits.")
@click.option("--peers", default=None, help="A Python that has faiss-cpu and imagededup.")
def hashes(num: tuple[int, ...], skew: Path | None, radius: int, peers: str | None) -> None:
    """Our search for near pairs, then the peers', on the same hashes."""
    photographs = hash_folder(skew) if skew is not None else None
    last: tuple[int, float] | None = None
    for size in num:
        drawn = make_hashes(size, photographs)
        head = {"num": size, "bits": "photographs" if skew else "random", "radius": radius}
        ours = measure_hashes(drawn, radius)
        if last is not None and min(last[1], ours["cpu_s_one_process"]) > 0:  # few hashes round to 0 s
            ours["exponent"] = round(log(ours["cpu_s_one_process"] / last[1]) / log(size / last[0]), 2)
        last = (size, ours["cpu_s_one_process"])
        print(json.dumps(head | {"who": "pairloom"} | ours), flush=True)
        if peers is None:
            print(json.dumps({"peers": "left out; give --peers PYTHON"}))
            continue
        for peer in PEERS:
            theirs = measure_peer(peers, peer, drawn, radius)
            if "cpu_s_all" in theirs and ours["cpu_s_one_process"] > 0:
                theirs["ratio"] = round(theirs["cpu_s_all"] / ours["cpu_s_one_process"], 1)
            print(json.dumps(head | {"who": peer} | theirs), flush=True)


@main.command()
@click.option("--num", type=int, default=1_000_000, help="Images.")
@click.option("--width", type=int, default=512, help="Numbers per feature.")
def semantic(num: int, width: int) -> None:
    """The semantic rounds."""
    print(json.dumps({"images": num} | measure_semantic(num, width) | {"peak_gb": round(peak_gb(), 2)}))


@main.command()
@click.option("--num", type=int, default=1_000_000, help="Samples.")
def step(num: int) -> None:
    """The whole step without features."""
    print(json.dumps({"samples": num} | measure_step(num) | {"peak_gb": round(peak_gb(), 2)}))


if __name__ == "__main__":
    main()
