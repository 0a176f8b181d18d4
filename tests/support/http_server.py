"""A real HTTP server for tests, with failures on some of its paths.

/files/<path>              a file below `folder`, or one of `pages`
/status/<code>             an empty answer with that status; ?retry_after=S adds the header
/flaky/<n>/<path>          503 for the first n requests, then the file; ?status=429&retry_after=1 to choose
/reset/<n>/<path>          the connection is cut for the first n requests, then the file
/redirect/<n>/<path>       n redirects, then the file
/redirect_to?url=<url>     one redirect to anywhere
/slow/<seconds>/<path>     the file after a while
/held/<path>               the file as soon as the test sets `release`
/drip/<seconds>/<path>     the file byte after byte, as slowly as that in all
/truncated/<path>          half of the body that Content-Length promises
/endless                   a body that never ends, without Content-Length
/robots_tag/<value>/<path> the file with an X-Robots-Tag
/hang_up                   the connection is closed without an answer
/garbage                   an answer that is not HTTP
"""

from __future__ import annotations

import mimetypes
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class TestServer(ThreadingHTTPServer):
    """Counts requests by path, and connections; `robots_txt` may change while it runs."""

    __test__ = False
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, folder: Path | None, pages: Mapping[str, bytes], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.is_dead = False
        self.num_deaths = 0
        self.sockets: set[Any] = set()  # of open connections
        self.folder = folder
        self.pages = dict(pages)
        self.robots_txt: bytes | int = 404  # a body, or the status of having none
        self.requests: Counter[str] = Counter()
        self.started_at: dict[str, float] = {}  # time.monotonic() of the last request, by path
        self.user_agents: set[str] = set()
        self.num_connections = 0
        self.num_open = self.most_open = 0  # requests being answered at once
        self.lock = threading.Lock()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        """Cut all connections and refuse new ones, as a host that is down."""
        self.is_dead = True
        self.num_deaths += 1
        for connection in list(self.sockets):
            _reset(connection)

    def come_back(self) -> None:
        """Serve again."""
        self.is_dead = False

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.is_dead:
            _reset(request)
            return
        self.num_connections += 1
        self.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients that close the connection are part of the tests."""


def _reset(connection: Any) -> None:
    """End a connection with RST; its thread, if any, closes it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: TestServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests[self.path] += 1
            server.started_at[self.path] = time.monotonic()
            server.user_agents.add(self.headers.get("User-Agent", ""))
            server.num_open += 1
            server.most_open = max(server.most_open, server.num_open)
        try:
            self._route()
        finally:
            with server.lock:
                server.num_open -= 1

    def _route(self) -> None:
        parts = urlsplit(self.path)
        name, _, rest = parts.path.lstrip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if name == "robots.txt":
            self._robots()
            return
        route = getattr(self, f"_get_{name}", None)
        if route is None:
            self._answer(404)
        else:
            route(unquote(rest), query)

    def _robots(self) -> None:
        rules = self.server.robots_txt
        if isinstance(rules, int):
            self._answer(rules)
        else:
            self._answer(200, rules, {"Content-Type": "text/plain"})

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str) -> bytes | None:
        if path in self.server.pages:
            return self.server.pages[path]
        file = self.server.folder / path if self.server.folder else None
        return file.read_bytes() if file is not None and file.is_file() else None

    def _get_files(self, path: str, query: Mapping[str, str]) -> None:
        body = self._file(path)
        if body is None:
            self._answer(404, b"<html>no such page</html>", {"Content-Type": "text/html"})
        else:
            self._answer(200, body, {"Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"})

    def _get_status(self, path: str, query: Mapping[str, str]) -> None:
        headers = {"Retry-After": query["retry_after"]} if "retry_after" in query else {}
        self._answer(int(path), b"", headers)

    def _get_flaky(self, path: str, query: Mapping[str, str]) -> None:
        num_failures, _, file = path.partition("/")
        if self.server.requests[self.path] <= int(num_failures):
            self._get_status(query.get("status", "503"), query)
        else:
            self._get_files(file, query)

    def _get_reset(self, path: str, query: Mapping[str, str]) -> None:
        num_failures, _, file = path.partition("/")
        if self.server.requests[self.path] <= int(num_failures):
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self._get_files(file, query)

    def _get_redirect(self, path: str, query: Mapping[str, str]) -> None:
        num_left, _, file = path.partition("/")
        target = f"/files/{file}" if int(num_left) <= 1 else f"/redirect/{int(num_left) - 1}/{file}"
        self._answer(302, b"moved", {"Location": target})

    def _get_redirect_to(self, path: str, query: Mapping[str, str]) -> None:
        self._answer(302, b"", {"Location": query["url"]})

    def _get_slow(self, path: str, query: Mapping[str, str]) -> None:
        seconds, _, file = path.partition("/")
        time.sleep(float(seconds))
        self._get_files(file, query)

    def _get_held(self, path: str, query: Mapping[str, str]) -> None:
        self.server.release.wait(60)
        self._get_files(path, query)

    def _get_drip(self, path: str, query: Mapping[str, str]) -> None:
        seconds, _, file = path.partition("/")
        body = self._file(file) or b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        num_pieces = 50
        for index in range(num_pieces):
            self.wfile.write(body[index * len(body) // num_pieces : (index + 1) * len(body) // num_pieces])
            time.sleep(float(seconds) / num_pieces)

    def _get_truncated(self, path: str, query: Mapping[str, str]) -> None:
        body = self._file(path) or b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def _get_endless(self, path: str, query: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(b"x" * 65536)

    def _get_robots_tag(self, path: str, query: Mapping[str, str]) -> None:
        value, _, file = path.partition("/")
        self._answer(200, self._file(file) or b"", {"X-Robots-Tag": value})

    def _get_hang_up(self, path: str, query: Mapping[str, str]) -> None:
        self.close_connection = True

    def _get_garbage(self, path: str, query: Mapping[str, str]) -> None:
        self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        self.close_connection = True


@contextmanager
def serve(folder: Path | None = None, pages: Mapping[str, bytes] | None = None) -> Iterator[TestServer]:
    """Run the server in a thread within the `with`."""
    server = TestServer(folder, pages or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
