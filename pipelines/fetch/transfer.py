"""One HTTP exchange on a reusable curl handle. Headers are checked before the body arrives; the body has a size limit.

Redirects are not followed here: the caller checks robots.txt of the target and starts another exchange.
"""

from __future__ import annotations

import email.utils
import errno
import os
import socket
import ssl
import time
from dataclasses import dataclass, replace
from typing import Any

import pycurl

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.fetch.robots import refused_directive
from pairloom.pipelines.sources.urls import is_public
from pairloom.schemas.drop_reason import TRANSIENT, DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe

DEFAULT_USER_AGENT = "pairloom/0.1"
DRAIN_BYTES = 1 << 16  # of an unwanted body: reading so much is cheaper than a new connection
DNS_CACHE_S = 300

_REASONS = {
    pycurl.E_COULDNT_RESOLVE_HOST: DropReason.DNS_ERROR,
    pycurl.E_OPERATION_TIMEDOUT: DropReason.TIMEOUT,
    pycurl.E_PARTIAL_FILE: DropReason.TRUNCATED_BODY,
    pycurl.E_URL_MALFORMAT: DropReason.INVALID_URL,
    pycurl.E_UNSUPPORTED_PROTOCOL: DropReason.INVALID_URL,
}  # all other curl errors are connection_error
_REFUSALS = {errno.ECONNREFUSED, errno.ECONNRESET}
_PERMANENT_ERRORS = {pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE, pycurl.E_BAD_CONTENT_ENCODING}


@dataclass(frozen=True)
class Response:
    """The result of one exchange: a body, a redirect, or an error."""

    body: SpooledBytes | None = None
    location: str | None = None
    error: SampleError | None = None
    is_transient: bool = False  # another attempt may succeed
    retry_after_s: float | None = None  # the Retry-After header, in seconds
    status: int = 0
    refused_by: str | None = None  # the address that refused or reset the connection
    is_incomplete: bool = False  # no complete response arrived: the network or the server may be down


class Transfer:
    """A curl handle with its callbacks; serves one exchange after another."""

    def __init__(self, recipe: FetchRecipe, is_probe: bool = False) -> None:
        self.curl = _new_handle(recipe.user_agent or DEFAULT_USER_AGENT)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        self.serial = 0  # number of the exchange
        self.timeout_s = 0.0
        self._user_agent = recipe.user_agent or DEFAULT_USER_AGENT
        self._disallowed = {directive.lower() for directive in recipe.disallowed_directives}
        self._allow_private = recipe.allow_private_addresses
        if recipe.proxy is not None:
            self._allow_private = True  # the address of the connection is that of the proxy
            self.curl.setopt(pycurl.NOPROXY, "")
            self.curl.setopt(pycurl.PROXY, recipe.proxy.get_secret_value())
        self.curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(recipe.connect_timeout_s * 1000)))
        if is_probe:  # a new name look-up and a new connection
            self.curl.setopt(pycurl.FRESH_CONNECT, 1)
            self.curl.setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
        self._reset(0, False)

    def _reset(self, max_bytes: int, is_robots: bool) -> None:
        """Clear the state of the last exchange."""
        self._max_bytes = max_bytes
        self._is_robots = is_robots
        self._headers: dict[str, str] = {}
        self._directives: list[str] = []
        self.status = 0
        self._has_headers = False  # all headers have arrived
        self._body: SpooledBytes | None = None
        self._num_bytes = 0
        self._refusal: SampleError | None = None
        self._hung_up = False  # this class ended the exchange; curl reports that as an error
        self._private_address: str | None = None
        self._address: str | None = None  # of the last connection that was opened
        self.started_at = time.monotonic()

    def start(self, url: str, timeout_s: float, max_bytes: int, is_robots: bool = False) -> None:
        """Prepare the handle; the caller adds it to its multi handle.

        A robots.txt is cut at `max_bytes`, not refused, and its X-Robots-Tag is ignored.
        """
        self._reset(max_bytes, is_robots)
        self.serial += 1
        self.timeout_s = timeout_s
        self.curl.setopt(pycurl.URL, url)
        self.curl.setopt(pycurl.TIMEOUT_MS, max(1, int(timeout_s * 1000)))

    def _open_socket(self, purpose: int, address: Any) -> Any:
        """curl calls this for every connection, with the address that the name resolved to."""
        family, kind, protocol, target = address
        if not self._allow_private and not is_public(str(target[0])):
            self._private_address = str(target[0])
            return pycurl.SOCKET_BAD
        self._address = str(target[0])
        return socket.socket(family, kind, protocol)

    def _on_header(self, line: bytes) -> int | None:
        if line.startswith(b"HTTP/"):
            self._headers, self._directives = {}, []
            code = line.split(None, 2)[1:2]
            self.status = int(code[0]) if code and code[0].isdigit() else 0
            return None
        name, separator, value = line.partition(b":")
        if separator:
            key = name.strip().lower().decode("latin-1")
            self._headers[key] = value.strip().decode("utf-8", "replace")
            if key == "x-robots-tag":
                self._directives.append(self._headers[key])
            return None
        if not line.strip() and self.status >= 200:
            self._has_headers = True
            return self._decide()
        return None

    def _decide(self) -> int | None:
        """All headers have arrived: continue, or end the exchange before the body."""
        length = int(self._headers["content-length"]) if self._headers.get("content-length", "").isdigit() else 0
        if not self._is_wanted():
            return self._hang_up() if length > DRAIN_BYTES else None
        if self._is_robots:
            return None
        for header in self._directives:
            directive = refused_directive(header, self._user_agent, self._disallowed)
            if directive is not None:
                self._refusal = SampleError(DropReason.ROBOTS_DIRECTIVE, f"X-Robots-Tag: {directive}")
                return self._hang_up()
        if length > self._max_bytes:
            self._refusal = SampleError(DropReason.TOO_MANY_BYTES, f"{length} bytes announced")
            return self._hang_up()
        return None

    def _is_wanted(self) -> bool:
        return 200 <= self.status < 300

    def _hang_up(self) -> int:
        self._hung_up = True
        return -1

    def _on_body(self, piece: bytes) -> int | None:
        self._num_bytes += len(piece)
        if not self._is_wanted():
            return self._hang_up() if self._num_bytes > DRAIN_BYTES else None
        if self._num_bytes > self._max_bytes:
            if self._is_robots:
                return self._hang_up()
            self._refusal = SampleError(DropReason.TOO_MANY_BYTES, f"more than {self._max_bytes} bytes")
            return self._hang_up()
        if self._body is None:
            self._body = SpooledBytes()
        self._body.write(piece)
        return None

    def finish(self, code: int, message: str) -> Response:
        """The response, from curl's result code (0 is success) and its message."""
        if self._refusal is not None:
            return self._without_body(Response(error=self._refusal, status=self.status))
        if code != 0 and self._private_address is not None:
            error = SampleError(DropReason.PRIVATE_ADDRESS, f"leads to {self._private_address}")
            return self._without_body(Response(error=error))
        if code != 0 and not self._hung_up:
            reason = _REASONS.get(code, DropReason.CONNECTION_ERROR)
            is_transient = reason in TRANSIENT and code not in _PERMANENT_ERRORS
            error = SampleError(reason, f"{message or 'curl'} ({code})")
            refused_by = self._address if self.curl.getinfo(pycurl.OS_ERRNO) in _REFUSALS else None
            failed = Response(error=error, is_transient=is_transient, status=self.status, is_incomplete=is_transient)
            return self._without_body(replace(failed, refused_by=refused_by))
        if not self._has_headers:  # the connection ended within the headers; curl does not report that
            error = SampleError(DropReason.TRUNCATED_BODY, "the response ends in its headers")
            return self._without_body(Response(error=error, is_transient=True, status=self.status, is_incomplete=True))
        return self._by_status()

    def _by_status(self) -> Response:
        status, location = self.status, self._headers.get("location")
        if self._is_wanted():
            body, self._body = self._body, None
            if body is None:
                return Response(error=SampleError(DropReason.NOT_AN_IMAGE, "empty body"), status=status)
            return Response(body=body, status=status)
        if status in (301, 302, 303, 307, 308) and location:
            return Response(location=location, status=status)
        error = SampleError(_reason_of_status(status), f"HTTP status {status}")
        retry_after_s = _parse_retry_after(self._headers.get("retry-after"))
        return Response(
            error=error, is_transient=error.drop_reason in TRANSIENT, retry_after_s=retry_after_s, status=status
        )

    def _without_body(self, response: Response) -> Response:
        if self._body is not None:
            self._body.close()
            self._body = None
        return response


def _new_handle(user_agent: str) -> pycurl.Curl:
    """A handle with the options that all exchanges share."""
    curl = pycurl.Curl()
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.NOPROXY, "*")  # behind a proxy, the address of the connection says nothing about the host
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
    curl.setopt(pycurl.PIPEWAIT, 1)  # prefer a second stream to a second connection
    curl.setopt(pycurl.ACCEPT_ENCODING, "identity")  # curl still decodes a body that arrives compressed
    curl.setopt(pycurl.USERAGENT, user_agent)
    curl.setopt(pycurl.BUFFERSIZE, 1 << 17)
    curl.setopt(pycurl.DNS_CACHE_TIMEOUT, DNS_CACHE_S)
    certificates = ssl.get_default_verify_paths().cafile
    if certificates and os.path.exists(certificates):
        curl.setopt(pycurl.CAINFO, certificates)
    return curl


def _reason_of_status(status: int) -> DropReason:
    if status in (404, 410):
        return DropReason.HTTP_NOT_FOUND
    if status == 429:
        return DropReason.HTTP_RATE_LIMITED
    if status == 408:
        return DropReason.TIMEOUT
    return DropReason.HTTP_SERVER_ERROR if status >= 500 else DropReason.HTTP_CLIENT_ERROR


def _parse_retry_after(value: str | None) -> float | None:
    """Seconds from now; the header has a number or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
