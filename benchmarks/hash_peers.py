"""Near pairs of hashes by other programs: faiss MultiHash, imagededup's brute force and BK-tree, in their own Python.

They are not dependencies of pairloom. Searches that would not finish are timed on a part of the queries; `cpu_s_all`
scales the time up linearly. Seconds are CPU seconds of all threads, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

FAISS = """
import sys, json, time, numpy as np, faiss
path, radius, num_queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
faiss.omp_set_num_threads(2)
rows = np.load(path).view(np.uint8).reshape(-1, 8)
bits = 16 if len(rows) <= 20_000_000 else 21
index = faiss.IndexBinaryMultiHash(64, 64 // bits, bits)  # exact for radius < tables * (flipped bits + 1)
start = time.process_time(); index.add(rows); added = time.process_time() - start
queries = rows[np.random.default_rng(2).permutation(len(rows))[:num_queries]]
index.nflip = radius // (64 // bits)
start = time.process_time(); limits, _, _ = index.range_search(queries, radius + 1)
searched = time.process_time() - start
num = int(limits[-1]) - len(queries)
print(json.dumps({"s_add": added, "s_search": searched, "num_queries": len(queries), "num_pairs_seen": num,
                  "cpu_s_all": added + searched * len(rows) / len(queries)}))
"""
BRUTE_FORCE = """
import sys, json, time, numpy as np, importlib
path, radius, num_queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
brute = importlib.import_module("brute_force_cython_ext")
everything = np.load(path, mmap_mode="r")
hashes = everything[:5_000_000]  # the cost of a query is linear in them; more would not fit as Python objects
start = time.process_time()
values = hashes.tolist()
names = [b"%d" % index for index in range(len(values))]
added = time.process_time() - start
queries = hashes[np.random.default_rng(2).permutation(len(hashes))[:num_queries]]
start = time.process_time()
num = sum(len(brute.query(names, values, value, radius)) for value in queries.tolist())
searched = time.process_time() - start
times = len(everything) / len(hashes)
print(json.dumps({"s_add": added, "s_search": searched, "num_queries": len(queries), "hashes_in_list": len(hashes),
                  "num_pairs_seen": num - len(queries),
                  "cpu_s_all": added * times + searched * times * len(everything) / len(queries)}))
"""  # its brute force in C
BK_TREE = """
import sys, json, time, pathlib, importlib.util, numpy as np
path, radius, num_queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = pathlib.Path(importlib.util.find_spec("brute_force_cython_ext").origin).parent
spec = importlib.util.spec_from_file_location("bktree", folder / "imagededup/handlers/search/bktree.py")
bktree = importlib.util.module_from_spec(spec); spec.loader.exec_module(bktree)
hashes = np.load(path)
some = np.random.default_rng(2).permutation(hashes)[:20_000].tolist()
start = time.process_time()
distance = lambda a, b: (int(a, 16) ^ int(b, 16)).bit_count()
tree = bktree.BKTree({str(i): f"{v:016x}" for i, v in enumerate(some)}, distance)
added = time.process_time() - start
start = time.process_time()
for value in some[:num_queries]:
    tree.search(query=f"{value:016x}", tol=radius)
searched = time.process_time() - start
each = added / len(some) + searched / min(num_queries, len(some))
print(json.dumps({"s_add": added, "s_search": searched, "num_queries": num_queries, "hashes_in_tree": len(some),
                  "cpu_s_all": each * len(hashes)}))
"""  # a tree of 20,000 hashes: a lower bound, because larger trees cost more per query
PEERS = {
    "faiss MultiHash": (FAISS, 20_000),
    "imagededup brute force": (BRUTE_FORCE, 20),
    "imagededup BK-tree (lower bound)": (BK_TREE, 100),
}


def measure_peer(python: str, peer: str, hashes: Hashes, radius: int) -> dict[str, Any]:
    """One peer on the same hashes, in its own process; {"error": ...} where it cannot run."""
    script, num_queries = PEERS[peer]
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
