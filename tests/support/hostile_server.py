"""A server of hostile responses: each case is a name, the bytes to send, and the expected drop reason.

Every case has its own address in 127.1.0.0/16, so that no case affects the politeness towards another. Images are in
hostile_images.py, other responses in hostile_http.py, rows of tables in hostile_rows.py.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.support.listener import Listener

GOOD_HOST = "127.1.255.1"
STEP_S = 0.2  # between the pieces of what drips
Send = Callable[[socket.socket, str], None]  # sends an answer to the request line

_LIMIT_S = 20.0  # no connection is served longer, whatever the client does


@dataclass(frozen=True)
class Hostile:
    """One case."""

    name: str
    what: str
    reason: str | None  # None: nothing is wrong with it, and the image is kept
    send: Send
    robots: Send | None = None  # instead of "there is none"
    scheme: str = "http"


def head(status: str = "200 OK", **headers: object) -> bytes:
    """Status line and headers; `content_length=5` is a `Content-Length: 5`."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(body: bytes, status: str = "200 OK", **headers: object) -> Send:
    """A valid response."""
    data = head(status, content_length=len(body), **headers) + body
    return lambda connection, request: connection.sendall(data)


def raw(data: bytes) -> Send:
    """Bytes, then the end of the connection."""

    def send(connection: socket.socket, request: str) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return send


def endless(first: bytes, piece: bytes, pause_s: float = 0.0) -> Send:
    """A prefix, then a piece repeated until the client closes the connection."""

    def send(connection: socket.socket, request: str) -> None:
        connection.sendall(first)
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline:
            connection.sendall(piece)
            time.sleep(pause_s)

    return send


def stall(first: bytes) -> Send:
    """A prefix, then nothing until every timeout has passed."""
    return endless(first, b"", STEP_S)


def reset(first: bytes) -> Send:
    """A prefix, then a RST."""

    def send(connection: socket.socket, request: str) -> None:
        connection.sendall(first)
        time.sleep(STEP_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    return send


def redirect(to: str, status: str = "302 Found") -> Send:
    """A redirect; `{port}` is the server's own."""

    def send(connection: socket.socket, request: str) -> None:
        location = to.replace("{port}", str(connection.getsockname()[1]))
        connection.sendall(head(status, location=location, content_length=0))

    return send


class HostileServer(Listener):
    """Serves each case on its own address, and an image on GOOD_HOST."""

    def __init__(self, cases: list[Hostile], image: bytes) -> None:
        super().__init__(socket.create_server(("0.0.0.0", 0), backlog=512))
        self._port = self._listener.getsockname()[1]
        self._by_host = {self._host(index): case for index, case in enumerate(cases)}
        self._good = whole(image)

    def _host(self, index: int) -> str:
        return f"127.1.{index // 200}.{index % 200 + 1}"

    def urls(self) -> list[str]:
        """One address per case."""
        return [f"{case.scheme}://{host}:{self._port}/" for host, case in self._by_host.items()]

    @property
    def good_url(self) -> str:
        """A harmless image."""
        return f"http://{GOOD_HOST}:{self._port}/good.jpg"

    def _serve(self, connection: socket.socket) -> None:
        case = self._by_host.get(connection.getsockname()[0])
        with suppress(OSError), connection:
            connection.settimeout(_LIMIT_S)
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    data = connection.recv(65536)
                    if not data:
                        return
                    received += data
                    if case is not None and case.scheme == "https":
                        break
                request, _, received = received.partition(b"\r\n\r\n")
                self._answer(connection, request.partition(b"\r\n")[0].decode("latin-1"), case)

    def _answer(self, connection: socket.socket, request: str, case: Hostile | None) -> None:
        if "/robots.txt" in request and (case is None or case.scheme == "http"):
            send = case.robots if case is not None and case.robots is not None else whole(b"", "404 Not Found")
        else:
            send = self._good if case is None else case.send
        send(connection, request)


@contextmanager
def serve_hostile(cases: list[Hostile], image: bytes) -> Iterator[HostileServer]:
    """Run the server in threads within the `with`."""
    server = HostileServer(cases, image)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
