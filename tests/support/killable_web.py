"""A web server in a process that can be killed, a table of its URLs, and an ingest of them in another process."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import resolve
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from tests.support.ingest_builder import NUM_IMAGES, make_pages, write_csv

ROWS_PER_SHARD = 25  # a shard that asks for fewer than 20 images does not tell a dead network from dead URLs


REPOSITORY = Path(__file__).resolve().parents[2]


SERVER = """
import sys
from pathlib import Path
from tests.support.http_server import TestServer
TestServer(Path(sys.argv[1]), {}, int(sys.argv[2])).serve_forever()
"""


INGEST = """
import sys
import ray
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
ray.init(address="local", num_cpus=int(sys.argv[2]), include_dashboard=False, log_to_driver=False)
ingest(load_recipe(sys.argv[1], CurateRecipe, sys.argv[3:]))
"""


class Server:
    """A web server in a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        """The same URL after a restart."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; returns when it answers."""
        command = [sys.executable, "-c", SERVER, str(self._folder), str(self.port)]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        while socket.socket().connect_ex(("127.0.0.1", self.port)) != 0:
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Images, and what the web calls images."""
    folder = tmp_path_factory.mktemp("web")
    for name, content in make_pages().items():
        (folder / name).write_bytes(content)
    server = Server(folder)
    yield server
    server.kill()


def rows_of(web: Server, first: int, num: int) -> list[dict[str, str]]:
    """One row in five fails first, is slow, or does not exist."""
    troubles = {0: "flaky/1", 1: "reset/1", 2: "slow/0.4", 3: "slow/0.8", 4: "files/none", 5: "files"}
    rows = []
    for index in range(first, first + num):
        trouble = troubles.get(index // 5 % 6) if index % 5 == 0 else "files"
        name = "page" if trouble == "files" and index % 5 == 0 else index % NUM_IMAGES
        rows.append(
            {
                "url": f"{web.url}/{trouble}/{name}.jpg?{index}",
                "caption": "" if index % 41 == 0 else f"picture {index}",
            }
        )
    return [*rows[:-1], rows[1]]  # the last row repeats another


@pytest.fixture(scope="module")
def table(web: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one table."""
    folder = tmp_path_factory.mktemp("urls")
    write_csv(folder / "a.csv", rows_of(web, 0, 600))
    return folder


def write_recipe(folder: Path, table: Path) -> Path:
    """Write a recipe with many retries, for a host that is down for some seconds."""
    folder.mkdir(exist_ok=True)
    fetch = {"allow_private_addresses": True, "timeout_s": 5, "retries": 10, "concurrency": 4}
    recipe = {
        "root": str(folder / "out"),
        "source": {"kind": "url_table", "path": str(table)},
        "ingest": {"samples_per_shard": ROWS_PER_SHARD, "image": {"size": 100}, "fetch": fetch},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def environment() -> dict[str, str]:
    """The environment without the variables of this process's Ray."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "PYTHONPATH": str(REPOSITORY)}


def ingest_with(recipe: Path, num_cpus: int, *overrides: str) -> Path:
    """Run ingest in another process, with a Ray of `num_cpus` CPUs."""
    command = [sys.executable, "-c", INGEST, str(recipe), str(num_cpus), *overrides]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment(), timeout=300)
    return Path(resolve(str(recipe.parent / "out/raw/main")))


def digests(folder: Path) -> dict[str, str]:
    """Digests of all files of a data set, without times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("_stats.json", "metrics.jsonl"))
    }


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The reference: two workers, and only the failures of the web server."""
    recipe = load_recipe(str(write_recipe(tmp_path_factory.mktemp("undisturbed"), table)), CurateRecipe)
    return Path(ingest(recipe))
