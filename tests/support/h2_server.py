"""An HTTP/2 server over TLS, and an HTTP/1.1 server that closes every connection, with their own certificates."""

from __future__ import annotations

import selectors
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.support.listener import Listener

QUIET_S = 0.05  # requests are answered together when no other has come for so long


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
               "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class TlsServer(Listener):
    """Counts connections and requests for tests."""

    def __init__(self, certificate: Path, key: Path, protocol: str, body: bytes) -> None:
        self.protocol = protocol
        self.body = body
        self.num_connections = self.num_resumed = self.num_requests = self.most_streams = 0
        self.protocols: set[str | None] = set()
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols([protocol])
        super().__init__(socket.create_server(("127.0.0.1", 0), backlog=256))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), self._context.wrap_socket(connection, server_side=True) as secure:
            with self._lock:
                self.num_connections += 1
                self.num_resumed += bool(secure.session_reused)
                self.protocols.add(secure.selected_alpn_protocol())
            if self.protocol == "h2":
                _Streams(self, secure).run()
            else:
                self._answer_once(secure)

    def _answer_once(self, secure: ssl.SSLSocket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += secure.recv(65536)
        self.num_requests += 1
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(self.body)}\r\n\r\n"
        secure.sendall(head.encode() + self.body)


class _Streams:
    """One HTTP/2 connection. Bodies must fit into the flow-control windows of their streams."""

    def __init__(self, server: TlsServer, secure: ssl.SSLSocket) -> None:
        self._server = server
        self._secure = secure
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._waiting: list[int] = []

    def run(self) -> None:
        self._http.initiate_connection()
        self._secure.sendall(self._http.data_to_send())
        with selectors.DefaultSelector() as selector:
            selector.register(self._secure, selectors.EVENT_READ)
            while True:
                if not self._secure.pending() and not selector.select(QUIET_S if self._waiting else 30):
                    self._answer_all()
                    continue
                data = self._secure.recv(65536)
                if not data:
                    return
                for event in self._http.receive_data(data):
                    self._note(event)
                self._secure.sendall(self._http.data_to_send())

    def _note(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._waiting.append(event.stream_id)
            self._server.num_requests += 1
            self._server.most_streams = max(self._server.most_streams, len(self._waiting))

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            with suppress(h2.exceptions.StreamClosedError):
                self._http.send_headers(stream, [(":status", "200"), ("content-length", str(len(self._server.body)))])
                self._http.send_data(stream, self._server.body, end_stream=True)
        self._secure.sendall(self._http.data_to_send())


@contextmanager
def serve_tls(folder: Path, protocol: str, body: bytes) -> Iterator[tuple[TlsServer, Path]]:
    """The running server, and the certificate to trust."""
    certificate, key = make_certificate(folder)
    server = TlsServer(certificate, key, protocol, body)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server, certificate
    finally:
        server.stop()
        thread.join()
