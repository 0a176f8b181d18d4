"""A local HTTP server for the demo's pictures, with the failures of the web on some of its paths."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

USUAL_PORT = 8917
SLOW_S = 30  # longer than every timeout of the recipe


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/status/"):
            self.send_response(int(self.path.split("/")[2].split("?")[0]))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/slow"):
            time.sleep(SLOW_S)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: one line per request would be thousands of lines."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection; the demo provokes them."""


def choose_port(folder: Path) -> int:
    """The port of this demo folder: the same in every run, so that URLs and uids stay the same."""
    remembered = folder / "port"
    if remembered.exists():
        return int(remembered.read_text())
    port = USUAL_PORT if _is_free(USUAL_PORT) else _any_free_port()
    folder.mkdir(parents=True, exist_ok=True)
    storage.put_bytes(str(remembered), f"{port}\n".encode())
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(folder: Path, port: int) -> Iterator[None]:
    """Serve `folder` on 127.0.0.1 until the body ends. Raises InputError when the port is taken."""
    try:
        server = _Server(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"port {port} of this demo folder is in use ({error.strerror}); stop what uses it or name another --out"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
