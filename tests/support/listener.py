"""A socket that answers each connection in a thread, for servers beyond an HTTP library."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Listener:
    """Accepts connections until it is stopped; a subclass answers them."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def run(self) -> None:
        """Accept until `stop`."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        """End `run`."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError
