"""The event loop of the fetcher: curl's multi interface on a selector, with a timeout for the first byte."""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Iterator

import pycurl

from pairloom.pipelines.fetch.transfer import Transfer

Ended = tuple[Transfer, int, str]  # transfer, curl's result code (0 is success), message


class CurlLoop:
    """Transfers in flight. Use it from one thread."""

    def __init__(self, max_connections: int, first_byte_timeout_s: float) -> None:
        self._first_byte_s = first_byte_timeout_s
        self._first_bytes: deque[tuple[float, Transfer, int]] = deque()  # (deadline, transfer, serial), sorted
        self._selector = selectors.DefaultSelector()
        self._curl_due: float | None = None  # time.monotonic() of curl's next timer
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)
        self.transfers: dict[pycurl.Curl, Transfer] = {}

    def add(self, transfer: Transfer) -> None:
        """Run a transfer whose `start` was called."""
        self.transfers[transfer.curl] = transfer
        if self._first_byte_s < transfer.timeout_s:
            self._first_bytes.append((transfer.started_at + self._first_byte_s, transfer, transfer.serial))
        self._multi.add_handle(transfer.curl)

    def remove(self, transfer: Transfer) -> None:
        """Remove a transfer before its end."""
        del self.transfers[transfer.curl]
        self._multi.remove_handle(transfer.curl)

    def _watch_socket(self, event: int, descriptor: int, multi: object, data: object) -> None:
        """curl calls this when it must wait for events of a socket."""
        known = descriptor in self._selector.get_map()
        if event == pycurl.POLL_REMOVE:
            if known:
                self._selector.unregister(descriptor)
            return
        flags = 0
        flags |= selectors.EVENT_READ if event in (pycurl.POLL_IN, pycurl.POLL_INOUT) else 0
        flags |= selectors.EVENT_WRITE if event in (pycurl.POLL_OUT, pycurl.POLL_INOUT) else 0
        if known:
            self._selector.modify(descriptor, flags)
        else:
            self._selector.register(descriptor, flags)

    def _set_timer(self, milliseconds: int) -> None:
        self._curl_due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def wait(self, timeout_s: float) -> list[Ended]:
        """Wait up to `timeout_s` seconds for a socket or a timer, and let curl work. Returns ended transfers."""
        now = time.monotonic()
        if self._curl_due is not None:
            timeout_s = min(timeout_s, self._curl_due - now)
        if self._first_bytes:
            timeout_s = min(timeout_s, self._first_bytes[0][0] - now)
        timeout_s = max(0.0, timeout_s)
        if self._selector.get_map():
            events = self._selector.select(timeout_s)
        else:  # epoll without sockets returns at once on some systems
            time.sleep(timeout_s)
            events = []
        for key, mask in events:
            flags = pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0
            flags |= pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            self._multi.socket_action(key.fd, flags)
        if self._curl_due is not None and self._curl_due <= time.monotonic():
            self._curl_due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return [*self._collect(), *self._first_byte_timeouts()]

    def _collect(self) -> Iterator[Ended]:
        """Remove ended exchanges from the multi handle."""
        num_left = 1
        while num_left:
            num_left, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._multi.remove_handle(curl)
                yield self.transfers.pop(curl), 0, ""
            for curl, code, message in failed:
                self._multi.remove_handle(curl)
                yield self.transfers.pop(curl), code, message

    def _first_byte_timeouts(self) -> Iterator[Ended]:
        """Cancel transfers that got no first byte within the timeout."""
        now = time.monotonic()
        while self._first_bytes and self._first_bytes[0][0] <= now:
            _, transfer, serial = self._first_bytes.popleft()
            if transfer.serial == serial and not transfer.status and transfer.curl in self.transfers:
                self.remove(transfer)
                yield transfer, pycurl.E_OPERATION_TIMEDOUT, f"no first byte within {self._first_byte_s:g} s"
