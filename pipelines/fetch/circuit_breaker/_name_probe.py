"""Asks the resolver for made-up names: any definite answer, also NXDOMAIN, shows that the network works."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from pairloom.pipelines.sources.urls import is_ip_address

MAX_NAMES = 3
_LOCAL = ("local", "localhost", "invalid", "test", "internal", "lan", "home", "arpa")  # answered without the network
_ANSWERS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def resolver_answers(name: str) -> bool:
    """Whether the resolver knows that a name exists or does not exist. May take as long as its timeout."""
    try:
        socket.getaddrinfo(name, 80)
    except socket.gaierror as error:
        return error.errno in _ANSWERS
    except (OSError, UnicodeError):
        return False
    return True


class NameProbe:
    """One look-up at a time, in a thread of its own."""

    def __init__(self, answers: Callable[[str], bool] = resolver_answers) -> None:
        self._answers = answers
        self._thread: threading.Thread | None = None
        self.has_answered = False

    def start(self, host_names: Sequence[str]) -> None:
        """Look up a random label below each name: no cache knows it."""
        names = [f"pairloom-{secrets.token_hex(6)}.{name}" for name in host_names if _is_global(name)][:MAX_NAMES]
        if names and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, args=(names,), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait for the look-ups that were started."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, names: Sequence[str]) -> None:
        with suppress(RuntimeError):  # the interpreter shuts down
            self.has_answered = self.has_answered or any(self._answers(name) for name in names)


def _is_global(name: str) -> bool:
    labels = name.rstrip(".").split(".")
    is_valid = len(name) <= 230 and all(0 < len(label) <= 63 for label in labels)
    return len(labels) > 1 and is_valid and labels[-1] not in _LOCAL and not is_ip_address(name)
