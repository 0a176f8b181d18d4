"""A resolver that fails while servers and connections work: no row is lost, and no shard is done.

The command runs in a mount namespace with its own hosts file. Emptying that file simulates the outage; the C library,
curl and ingest are the real ones.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pairloom.schemas.data_set.manifest import resolve
from tests.support.http_server import TestServer
from tests.support.ingest_builder import NUM_IMAGES, read_rows, write_csv
from tests.support.killable_web import environment

NUM_NAMES = 300
NUM_ANSWERED = 60  # names, before the resolver dies
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
WITH_OWN_NAMES = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'


class Names:
    """A hosts file for the command, and a resolver without a server."""

    def __init__(self, folder: Path) -> None:
        self._hosts, self._resolver = folder / "hosts", folder / "resolv.conf"
        self._resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.come_back()

    def die(self) -> None:
        """Only this machine's own names resolve."""
        self._hosts.write_text(Path("/etc/hosts").read_text())

    def come_back(self) -> None:
        """All names resolve."""
        names = (f"127.0.0.1 h{index}.invalid\n" for index in range(NUM_NAMES))
        self._hosts.write_text(Path("/etc/hosts").read_text() + "".join(names))

    def around(self, *command: str) -> list[str]:
        """The command with this hosts file."""
        return [*NAMESPACE, WITH_OWN_NAMES, "sh", str(self._hosts), str(self._resolver), *command]


@pytest.fixture
def names(tmp_path: Path) -> Names:
    own = Names(tmp_path)
    try:
        found = subprocess.run(own.around("getent", "hosts", "h7.invalid"), capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare and getent are not installed")
    if "127.0.0.1" not in found.stdout:
        pytest.skip(f"no mount namespace of one's own here: {found.stderr.strip()[:200]}")
    return own


@pytest.mark.slow
def test_a_resolver_that_dies_finishes_no_shard(tmp_path: Path, web: TestServer, names: Names) -> None:
    rows = [{"url": f"http://h{index % NUM_NAMES}.invalid:{web.server_port}/files/{index % NUM_IMAGES}.jpg?{index}",
             "caption": f"picture {index}"} for index in range(2 * NUM_NAMES)]  # fmt: skip
    recipe = {
        "root": str(tmp_path / "out"),
        "source": {"kind": "url_table", "path": str(write_csv(tmp_path / "a.csv", rows))},
        "ingest": {"fetch": {"allow_private_addresses": True, "concurrency": 8, "retries": 1, "outage_patience_s": 2}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pairloom = str(Path(sys.executable).parent / "pairloom")
    command = names.around(pairloom, "curate", str(tmp_path / "recipe.yaml"), "--only", "ingest")

    def watch() -> None:
        while web.requests["/robots.txt"] < NUM_ANSWERED:
            time.sleep(0.002)
        names.die()

    threading.Thread(target=watch, daemon=True).start()
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert "the network is down" in ended.stderr
    assert "run the same command again" in ended.stderr
    assert not list(tmp_path.rglob("out/raw/main/*/0000/*.parquet"))
    assert web.requests["/robots.txt"] < NUM_NAMES, "the resolver was alive to the end"

    names.come_back()
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert [row["status"] for row in read_rows(resolve(str(tmp_path / "out/raw/main")))] == ["success"] * len(rows)
