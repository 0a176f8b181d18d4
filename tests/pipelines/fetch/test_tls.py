"""Fetching over TLS: HTTP/2 streams over one connection, resumed sessions, checked certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairloom.schemas.drop_reason import DropReason
from tests.support.fetching import fetch, fetcher, reason
from tests.support.h2_server import serve_tls

BODY = b"image" * 10


def test_http_2_sends_many_streams_over_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_tls(tmp_path, "h2", BODY) as (server, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        loop = fetcher(obey_robots_txt=False, per_host=20, timeout_s=10)
        assert fetch(loop, [f"{server.url}/{index}.jpg" for index in range(100)]) == [BODY] * 100
        assert (server.num_connections, server.num_requests, server.protocols) == (1, 100, {"h2"})
        assert 10 <= server.most_streams <= 20, "many at once, and no more than per_host"
        assert fetch(loop, [f"{server.url}/again.jpg"]) == [BODY]
        assert server.num_connections == 1, "the next shard of the same process"


def test_tls_sessions_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server closes every connection, only the first handshakes are full ones."""
    with serve_tls(tmp_path, "http/1.1", BODY) as (server, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        loop = fetcher(obey_robots_txt=False, per_host=2, timeout_s=10)
        assert fetch(loop, [f"{server.url}/{index}.jpg" for index in range(30)]) == [BODY] * 30
        assert server.num_connections == 30
        assert server.num_resumed >= 25


def test_a_certificate_that_nobody_signed_is_refused_at_once(tmp_path: Path) -> None:
    with serve_tls(tmp_path, "h2", BODY) as (server, _):
        [result] = fetch(fetcher(obey_robots_txt=False, retries=3), [f"{server.url}/a.jpg"])
        assert reason(result) == DropReason.CONNECTION_ERROR
        assert server.num_requests == 0
