"""All steps on several Ray nodes of one machine, in a separate process: `python -m tests.support.several_nodes --help`.

Each node is a raylet with its own workers, as a node of a cluster; all share the disk. Prints one JSON object:
on which nodes tasks of the curation were seen, and whether a node was killed before the curation was done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from pairloom.pipelines.curate import curate
from pairloom.pipelines.dedupe.limits import DedupeLimits
from pairloom.pipelines.engine.batches import BatchLimits
from pairloom.schemas.errors import PairloomError
from pairloom.schemas.recipes.curate import CurateRecipe

WATCH_S = 0.02
WRITTEN_BY = {"dedupe": "dedupe/*/*/spill/*/samples/*.rows", "reshard": "curated/*/*/0000/*.parquet"}


def recipe_for(pictures: str, root: str) -> CurateRecipe:
    """A recipe with all steps and small shards, for many tasks."""
    return CurateRecipe.model_validate(
        {
            "root": root,
            "source": {"kind": "folder", "path": pictures},
            "ingest": {"samples_per_shard": 8},
            "balance": {"kind": "metaclip", "t": 30, "min_count": 3, "min_information": 0.5},
            "select": {"min_side": 10},
            "reshard": {"samples_per_shard": 4, "raw_shards_per_group": 1},
        }
    )


class Nodes(threading.Thread):
    """Records the nodes that run tasks; kills the last node after `step` has written something."""

    def __init__(self, cluster: Cluster, root: Path, step: str | None) -> None:
        super().__init__(daemon=True)
        self._cluster, self._root, self._step = cluster, root, step
        nodes = cluster.list_all_nodes()
        self._raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
        self._done = threading.Event()
        self.busy: set[int] = set()
        self.killed_in: str | None = None

    def run(self) -> None:
        """Watch until `stop`."""
        while not self._done.wait(WATCH_S):
            for number, raylet in enumerate(self._raylets):
                if number not in self.busy and self._runs_tasks(raylet):
                    self.busy.add(number)
            if self._step is not None and any(self._root.glob(WRITTEN_BY[self._step])):
                self._cluster.remove_node(self._cluster.list_all_nodes()[-1], allow_graceful=False)
                finished = list(self._root.glob(f"{WRITTEN_BY[self._step].partition('/')[0]}/*/LATEST"))
                self.killed_in = None if finished else self._step
                self._step = None

    @staticmethod
    def _runs_tasks(raylet: psutil.Process) -> bool:
        try:
            return any("run_one" in " ".join(worker.cmdline()) for worker in raylet.children())
        except psutil.Error:
            return False

    def stop(self) -> None:
        """End the watch."""
        self._done.set()
        self.join()


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures")
    parser.add_argument("root", type=Path)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="of a node")
    parser.add_argument("--kill", choices=sorted(WRITTEN_BY), default=None, help="the last node, in the middle of it")
    options = parser.parse_args()
    limits = DedupeLimits(BatchLimits(max_rows=20), rows_per_part=30, rows_per_join=50)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: sockets lie there
    os.environ["RAY_TMPDIR"] = folder  # else every other ray.init() of this machine would join this cluster
    node: dict[str, Any] = {"num_cpus": options.cpus, "object_store_memory": 128 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(options.nodes - 1):
        cluster.add_node(**node)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    watch = Nodes(cluster, options.root, options.kill)
    watch.start()
    started_at = time.monotonic()
    try:
        curate(recipe_for(options.pictures, str(options.root)), lambda: None, limits=limits)
    except PairloomError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    finally:
        watch.stop()
    told = {"nodes": sorted(watch.busy), "killed_in": watch.killed_in, "s": round(time.monotonic() - started_at, 1)}
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
