"""Near pairs of 64-bit hashes at scale, beside its peers on the same input: `python -m benchmarks.dedupe --help`.

Hashes are random with planted groups (copies with 1 to 3 bits flipped), or `skewed`: each bit is one with a
probability of its own and follows its neighbour, as hashes of photographs do. Recall is counted by brute force over
a sample of hashes. Peers (faiss-cpu, imagededup) are taken from another Python (`--peers`), for they are no
dependencies; those that would not finish are timed on a part of the queries, and `s_all` scales that up linearly.
Every line is one JSON object.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
GROUP_SHARE = 0.1  # of the hashes are copies of another


def make_hashes(kind: str, num: int, seed: int = 0) -> Hashes:
    """Distinct hashes, a tenth of them planted near another."""
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, num, dtype=np.uint64)
    if kind == "skewed":  # ones are rare in half of the bits, and a fifth of all share their first 16 bits
        rare = generator.integers(0, 2**64, dtype=np.uint64)
        hashes &= generator.integers(0, 2**64, num, dtype=np.uint64) | ~rare
        hashes[: num // 5] &= np.uint64(2**48 - 1)
    num_copies = int(num * GROUP_SHARE)
    copies = hashes[generator.integers(0, num, num_copies)]
    for _ in range(3):
        copies ^= np.uint64(1) << generator.integers(0, 64, num_copies, dtype=np.uint64)
    hashes[generator.permutation(num)[:num_copies]] = copies
    return np.unique(hashes)


def recall_of_sample(hashes: Hashes, pairs: Any, radius: int, num_queries: int = 500) -> float:
    """Share of the pairs of some hashes, by brute force, that were found."""
    found = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) if len(pairs.left) < 5_000_000 else None
    num_true = num_found = 0
    for query in np.random.default_rng(1).integers(0, len(hashes), num_queries).tolist():
        near = np.flatnonzero(np.bitwise_count(hashes ^ hashes[query]) <= radius)
        for other in near[near != query].tolist():
            num_true += 1
            pair = (min(query, other), max(query, other))
            num_found += pair in found if found is not None else _is_listed(pairs, pair)
    return num_found / max(1, num_true)


def _is_listed(pairs: Any, pair: tuple[int, int]) -> bool:
    first, last = np.searchsorted(pairs.left, [pair[0], pair[0] + 1])
    return bool((pairs.right[first:last] == pair[1]).any())


def measure_own(kind: str, num: int, radius: int, num_cpus: int) -> dict[str, Any]:
    """Our search on Ray, as the step runs it."""
    import ray

    from pipelines.dedupe.near import all_pairs
    from pipelines.dedupe.perceptual import find_pairs

    find_pairs(make_hashes(kind, 1000), radius)  # compile
    ray.init(num_cpus=num_cpus, log_to_driver=False, include_dashboard=False)
    all_pairs(make_hashes(kind, 1000), radius)  # workers have started
    hashes = make_hashes(kind, num)
    start = time.perf_counter()
    pairs = all_pairs(hashes, radius)
    seconds = time.perf_counter() - start
    peak = _peak_of_workers()
    result = {"s": seconds, "num_pairs": len(pairs.left), "peak_gb": peak}
    ray.shutdown()
    result["recall"] = recall_of_sample(hashes, pairs, radius)
    return result | {"cpu_s_one_process": _cpu_seconds(hashes, radius)}


def _peak_of_workers() -> float:
    """Sum over this process and its descendants of what each held at its peak, GB; shared pages count once each."""
    import psutil

    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        status = Path(f"/proc/{process.pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return total / 2**20


def _cpu_seconds(hashes: Hashes, radius: int) -> float:
    from pipelines.dedupe.perceptual import find_pairs

    start = time.process_time()
    find_pairs(hashes, radius)
    return time.process_time() - start


FAISS = """
import sys, json, time, numpy as np, faiss
path, radius, num_queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
faiss.omp_set_num_threads(2)
rows = np.load(path).view(np.uint8).reshape(-1, 8)
bits = 16 if len(rows) <= 20_000_000 else 21
index = faiss.IndexBinaryMultiHash(64, 64 // bits, bits)  # exact for radius < tables
start = time.perf_counter(); index.add(rows); added = time.perf_counter() - start
queries = rows[np.random.default_rng(2).permutation(len(rows))[:num_queries]]
index.nflip = 0
start = time.perf_counter(); limits, _, _ = index.range_search(queries, radius + 1)
searched = time.perf_counter() - start
num = int(limits[-1]) - len(queries)
print(json.dumps({"s_add": added, "s_search": searched, "num_queries": len(queries), "num_pairs_seen": num,
                  "s_all": added + searched * len(rows) / len(queries)}))
"""
IMAGEDEDUP = """
import sys, json, time, numpy as np, importlib
path, radius, num_queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
brute = importlib.import_module("brute_force_cython_ext")
hashes = np.load(path)
start = time.perf_counter()
values = hashes.tolist()
names = [b"%d" % place for place in range(len(values))]
added = time.perf_counter() - start
queries = hashes[np.random.default_rng(2).permutation(len(hashes))[:num_queries]]
start = time.perf_counter()
num = sum(len(brute.query(names, values, value, radius)) for value in queries.tolist())
searched = time.perf_counter() - start
print(json.dumps({"s_add": added, "s_search": searched, "num_queries": len(queries),
                  "num_pairs_seen": num - len(queries), "s_all": added + searched * len(hashes) / len(queries) / 2}))
"""  # its brute force in C over all hashes; / 2: on two cores


def measure_peer(python: str, script: str, hashes: Hashes, radius: int, num_queries: int) -> dict[str, Any]:
    """One peer on the same hashes, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hashes.npy"
        np.save(path, hashes)
        arguments = [python, "-c", script, str(path), str(radius), str(num_queries)]
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        done = subprocess.run(arguments, capture_output=True, text=True, env=clean, check=False)
    if done.returncode:
        return {"error": done.stderr[-300:]}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure_semantic(num: int, width: int, num_cpus: int) -> dict[str, Any]:
    """Our semantic step on features around 5,000 random directions, a tenth of them planted near another."""
    import ray

    from pipelines.dedupe.semantic import FeatureShards, semantic_duplicates
    from pipelines.dedupe.slim import Slim
    from schemas.dedupe_recipe import SemanticRecipe

    generator = np.random.default_rng(0)
    rows_per_shard = 10_000
    shards = -(-num // rows_per_shard)
    centres = generator.standard_normal((5000, width), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(shards):
            rows = centres[generator.integers(0, 5000, rows_per_shard)]
            rows = rows + 0.9 * generator.standard_normal(rows.shape, dtype=np.float32)
            copies = rows[: rows_per_shard // 10]
            rows[-len(copies) :] = copies + 0.1 * generator.standard_normal(copies.shape, dtype=np.float32)
            np.save(Path(folder) / f"{shard}.image_features.npy", rows.astype(np.float16))
        place = np.arange(shards * rows_per_shard)
        empty: dict[str, Any] = {name: None for name in Slim.__dataclass_fields__}
        slim = Slim(**empty | {"shard": (place // rows_per_shard).astype(np.int32), "row": place % rows_per_shard})
        order = generator.permutation(len(place))  # samples are in the order of their uids, which are hashes
        slim = Slim(**empty | {"shard": slim.shard[order], "row": slim.row[order].astype(np.int32)})
        ray.init(num_cpus=num_cpus, log_to_driver=False, include_dashboard=False)
        start = time.perf_counter()
        files = FeatureShards(folder, tuple(str(shard) for shard in range(shards)))
        instead = semantic_duplicates(slim, place, SemanticRecipe(features="clip"), files)
        seconds = time.perf_counter() - start
        peak = _peak_of_workers()
        ray.shutdown()
    planted = len(place) // 10
    return {"s": seconds, "num_dropped": int((instead >= 0).sum()), "num_planted": planted, "peak_gb": peak}


@click.command(context_settings={"show_default": True})
@click.option("--num", multiple=True, type=int, default=[1_000_000], help="Hashes; may be given several times.")
@click.option("--kind", type=click.Choice(["uniform", "skewed"]), default="uniform")
@click.option("--radius", default=3, help="Bits.")
@click.option("--cpus", default=2, help="Of our own search.")
@click.option("--peers", default=None, help="A Python that has faiss-cpu and imagededup.")
@click.option("--semantic", type=int, default=None, help="Instead: semantic dedupe of so many 512-d features.")
@click.option("--queries", default=20_000, help="Of the peers.")
def main(
    num: tuple[int, ...], kind: str, radius: int, cpus: int, peers: str | None, semantic: int | None, queries: int
) -> None:
    """Measure our search, then the peers, on the same hashes."""
    if semantic is not None:
        print(json.dumps({"semantic": semantic} | measure_semantic(semantic, 512, cpus)))
        return
    for size in num:
        head = {"num": size, "kind": kind, "radius": radius}
        print(json.dumps(head | {"who": "pairloom"} | measure_own(kind, size, radius, cpus)), flush=True)
        for who, script in (("faiss MultiHash", FAISS), ("imagededup brute force", IMAGEDEDUP)):
            if peers is not None:
                share = queries if script is FAISS else max(1, queries // 1000)
                result = measure_peer(peers, script, make_hashes(kind, size), radius, share)
                print(json.dumps(head | {"who": who} | result), flush=True)
    print(json.dumps({"peak_gb_of_this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


if __name__ == "__main__":
    sys.exit(main())
