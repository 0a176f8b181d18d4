"""A loopback HTTP server with low CPU cost: answers are built before the first request, one process, epoll.

    GET /<folder>/<number>.jpg   image number % the number of images in the folder

Everything else (robots.txt) is a 404. Run as `python -m benchmarks.image_server FOLDER [SHARE SECONDS]`; it prints
its port. With SHARE and SECONDS, that share of the images, spread evenly, is sent after so many seconds.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Connection:
    """One keep-alive connection: received bytes, and bytes to send."""

    link: socket.socket
    received: bytes = b""
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    is_writing: bool = False


class ImageServer:
    """Serves the images of the folders below one folder."""

    def __init__(self, root: Path, slow_share: float = 0.0, slow_s: float = 0.0) -> None:
        self._slow_share, self._slow_s = slow_share, slow_s
        self._slow: list[tuple[float, int, Connection, bytes]] = []  # due time, unique number
        self._num_slow = 0
        self._pages = {
            folder.name: [self._page(path) for path in sorted(folder.iterdir())] for folder in root.iterdir()
        }
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port = self._listener.getsockname()[1]

    @staticmethod
    def _page(path: Path) -> bytes:
        data = path.read_bytes()
        return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data

    def serve(self) -> None:
        """Answer until the process is ended."""
        while True:
            now = time.monotonic()
            while self._slow and self._slow[0][0] <= now:
                _, _, connection, page = heapq.heappop(self._slow)
                self._begin(connection, page)
            for key, _ in self._selector.select(self._slow[0][0] - now if self._slow else None):
                if key.data is None:
                    self._accept()
                else:
                    self._go_on(key.data)

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._selector.register(link, selectors.EVENT_READ, Connection(link))

    def _go_on(self, connection: Connection) -> None:
        try:
            if connection.is_writing:
                self._write(connection)
                return
            received = connection.link.recv(65536)
        except (ConnectionError, BlockingIOError):
            received = b""
        if not received:
            self._selector.unregister(connection.link)
            connection.link.close()
            return
        connection.received += received
        while b"\r\n\r\n" in connection.received:
            request, _, connection.received = connection.received.partition(b"\r\n\r\n")
            self._answer(connection, request.split(None, 2)[1].decode())

    def _answer(self, connection: Connection, path: str) -> None:
        parts = path.strip("/").split("/")
        pages = self._pages.get(parts[-2] if len(parts) > 1 else "", [])
        if not pages:
            self._begin(connection, NOT_FOUND)
            return
        number = int(parts[-1].partition(".")[0])
        page = pages[number % len(pages)]
        if int((number + 1) * self._slow_share) > int(number * self._slow_share):
            self._num_slow += 1
            heapq.heappush(self._slow, (time.monotonic() + self._slow_s, self._num_slow, connection, page))
        else:
            self._begin(connection, page)

    def _begin(self, connection: Connection, page: bytes) -> None:
        connection.to_send = memoryview(page)
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        try:
            sent = connection.link.send(connection.to_send)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            return
        connection.to_send = connection.to_send[sent:]
        if bool(connection.to_send) != connection.is_writing:
            connection.is_writing = bool(connection.to_send)
            event = selectors.EVENT_WRITE if connection.is_writing else selectors.EVENT_READ
            self._selector.modify(connection.link, event, connection)


if __name__ == "__main__":
    server = ImageServer(Path(sys.argv[1]), *map(float, sys.argv[2:]))
    print(server.port, flush=True)
    server.serve()
