"""Ingest on a Ray cluster of several nodes that loses one gives the same bytes as on one node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pairloom.schemas.data_set.manifest import resolve
from tests.support.killable_web import REPOSITORY, digests, environment, table, undisturbed, web, write_recipe

__all__ = ["table", "undisturbed", "web"]  # fixtures

NODES = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.curate import curate
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
recipe = load_recipe(sys.argv[1], CurateRecipe, [])
cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
nodes = [cluster.add_node(**SMALL) for _ in range(2)]
cluster.wait_for_nodes()
kills = []


def lose_a_node():
    while len(list(Path(recipe.root).glob("raw/main/*/0000/*.parquet"))) < 4:
        time.sleep(0.01)
    cluster.remove_node(nodes[0], allow_graceful=False)
    kills.append(len(list(Path(recipe.root).glob("raw/main/*/0000/*.parquet"))))


threading.Thread(target=lose_a_node, daemon=True).start()
curate(recipe, lambda: start_ray(cluster.address), only="ingest")
import ray
until = time.monotonic() + 60  # the cluster may hear of the loss later than the ingest needs
while len(alive := [node for node in ray.nodes() if node["Alive"]]) == 3 and time.monotonic() < until:
    time.sleep(0.1)
hosts = len({node["NodeID"] for node in ray.nodes()})
print(f"lost after {kills[0]} shards, {len(alive)} of {hosts} nodes left")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_is_lost_changes_no_byte(table: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NODES, str(write_recipe(tmp_path, table))]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = next(line for line in ended.stdout.splitlines() if line.startswith("lost after"))  # Ray also writes there
    assert told.endswith("2 of 3 nodes left"), told
    assert int(told.split()[2]) < len(list(undisturbed.glob("0000/*.parquet"))), "the node was lost too late"
    assert digests(Path(resolve(str(tmp_path / "out/raw/main")))) == digests(undisturbed)
