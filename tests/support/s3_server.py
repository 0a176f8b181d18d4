"""A real S3 server for tests (Ceph's RADOS Gateway on loopback), and a TCP proxy that injects faults.

The server is started once a run by `shared/tools/s3_server_ceph.sh` beside the repository. Its packages are Debian's;
they are installed where the tests run as root and the package mirror answers. Without them the tests skip and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.shared_data import SHARED_DATA

SCRIPT = SHARED_DATA.parent / "tools" / "s3_server_ceph.sh"
PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-base", "ceph-common", "curl")
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "curl")
INSTALL_TIMEOUT_S = 120
START_TIMEOUT_S = 120
_REQUEST = re.compile(rb"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP/1")


@dataclass(frozen=True)
class S3Server:
    """Address and accounts of the server."""

    url: str
    folder: Path
    key: str = "testkey"
    secret: str = "testsecret1"

    @property
    def port(self) -> int:
        """The URL of the server, without a proxy."""
        return int(self.url.rpartition(":")[2])

    def environment(self, url: str | None = None, key: str | None = None, secret: str | None = None) -> dict[str, str]:
        """The environment variables for pairloom and its child processes."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": key or self.key,
            "AWS_SECRET_ACCESS_KEY": secret or self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def add_user(self, key: str, secret: str) -> None:
        """A second account, without permissions for the buckets of the first unless a policy grants them."""
        configuration = str(self.folder / "ceph.conf")
        subprocess.run(
            ["radosgw-admin", "-c", configuration, "user", "create", f"--uid={key}", f"--display-name={key}",
             f"--access-key={key}", f"--secret={secret}"], check=True, capture_output=True, timeout=60,
        )  # fmt: skip


def _install() -> str | None:
    """Install the server's packages. Returns the reason if that fails."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return None
    reason = f"no {', '.join(missing)}; install Debian's packages {' '.join(PACKAGES)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return reason
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    deadline = time.monotonic() + INSTALL_TIMEOUT_S
    try:
        for command in (["apt-get", "update", "-qq"], install):
            seconds = max(1.0, deadline - time.monotonic())
            subprocess.run(command, check=True, capture_output=True, timeout=seconds, env=environment)
    except (subprocess.SubprocessError, OSError) as error:
        return f"{reason} ({type(error).__name__} when the tests tried)"
    return None


def _free_port() -> int:
    """A port P that is free, as are the ones that the script puts its monitor on: P + 1000 and P + 1001."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 60_000 and not any(_answers(port + more) for more in (1000, 1001)):
            return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Run the server within the `with`; skips the test with a reason if it is not available."""
    if not SCRIPT.exists():
        pytest.skip(f"no S3 server: {SCRIPT} is not there; set PAIRLOOM_SHARED to the folder that holds tools/")
    reason = _install()
    if reason is not None:
        pytest.skip(f"no S3 server: {reason}")
    port = _free_port()
    command = ["bash", str(SCRIPT), str(folder), str(port)]
    try:
        with (folder.parent / "s3_server.log").open("wb") as log:
            subprocess.run(command, check=True, timeout=START_TIMEOUT_S, stdout=log, stderr=log)
        yield S3Server(f"http://127.0.0.1:{port}", folder)
    except subprocess.SubprocessError as error:
        pytest.skip(f"no S3 server: {SCRIPT.name} failed ({error}); see {folder.parent / 's3_server.log'}")
    finally:
        for file in sorted((folder / "run").glob("*.pid")):
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


class FaultyProxy:
    """Passes TCP on to the server, counts the requests in it, and breaks as many as it is told to.

    `break_next(n, how)`: of the next n requests (whose line matches `only`) `reset` cuts the connection, `503` answers
    for the server, `cut_reply` lets the request through and loses the answer, `hang` never answers.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._lock = threading.Lock()
        self._faults: list[tuple[str, re.Pattern[str]]] = []
        self.requests: Counter[str] = Counter()  # "PUT /bucket/key?query"
        self.num_bytes_answered = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def break_next(self, num_requests: int, how: str, only: str = "") -> None:
        """Break the next matching requests, in addition to those already ordered."""
        with self._lock:
            self._faults += [(how, re.compile(only))] * num_requests

    def heal(self) -> None:
        """Stop breaking requests."""
        with self._lock:
            self._faults.clear()

    @property
    def num_faults_left(self) -> int:
        """Number of ordered faults that are left."""
        return len(self._faults)

    def count(self, pattern: str) -> int:
        """Number of requests whose line matches."""
        return sum(number for line, number in self.requests.items() if re.search(pattern, line))

    def close(self) -> None:
        """Stop accepting connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            answers = _Answers(self, server, client)
            while piece := client.recv(1 << 16):
                fault = self._fault(piece)
                if fault == "hang":
                    while client.recv(1 << 16):
                        pass
                elif fault == "503":
                    _drain(client)
                    client.sendall(
                        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                if fault == "cut_reply":
                    answers.are_lost = True
                elif fault is not None:
                    return
                server.sendall(piece)

    def _fault(self, piece: bytes) -> str | None:
        """Count a piece that starts a request. Returns its fault, if any."""
        found = _REQUEST.match(piece)
        if found is None:
            return None
        line = b" ".join(found.groups()).decode()
        with self._lock:
            self.requests[line] += 1
            for index, (how, only) in enumerate(self._faults):
                if only.search(line):
                    del self._faults[index]
                    return how
        return None


class _Answers:
    """Copy the server's bytes to the client; `are_lost` cuts the connection instead."""

    def __init__(self, proxy: FaultyProxy, server: socket.socket, client: socket.socket) -> None:
        self._proxy, self._server, self._client = proxy, server, client
        self.are_lost = False
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        with suppress(OSError):
            while piece := self._server.recv(1 << 16):
                is_final = not piece.startswith(b"HTTP/1.1 100")
                if self.are_lost and is_final:
                    break
                self._proxy.num_bytes_answered += len(piece)
                self._client.sendall(piece)
            self._client.shutdown(socket.SHUT_RDWR)


def _drain(client: socket.socket) -> None:
    """Read pending bytes, so that a reset does not discard the response."""
    client.settimeout(0.05)
    with suppress(TimeoutError):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while client.recv(1 << 16):
            pass
    client.settimeout(None)
