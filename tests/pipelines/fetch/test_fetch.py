"""Fetching over real sockets: every URL ends as bytes or with a drop reason."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairloom.pipelines.sources.urls import (
    clean_slowly,
    clean_url,
    is_public,
    redirect_target,
    requested_url,
    robots_url,
    without_userinfo,
)
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from tests.support.fetching import BODY, fetch, fetcher, reason
from tests.support.http_server import TestServer, serve


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/status/404", DropReason.HTTP_NOT_FOUND),
        ("/status/410", DropReason.HTTP_NOT_FOUND),
        ("/status/403", DropReason.HTTP_CLIENT_ERROR),
        ("/status/304", DropReason.HTTP_CLIENT_ERROR),
        ("/status/500", DropReason.HTTP_SERVER_ERROR),
        ("/status/429", DropReason.HTTP_RATE_LIMITED),
        ("/redirect/9/a.jpg", DropReason.TOO_MANY_REDIRECTS),
        ("/redirect_to?url=/redirect_to?url=%2F", DropReason.HTTP_NOT_FOUND),
        ("/redirect_to?url=file:///etc/passwd", DropReason.INVALID_URL),
        ("/redirect_to?url=gopher://127.0.0.1/", DropReason.INVALID_URL),
        ("/truncated/a.jpg", DropReason.TRUNCATED_BODY),
        ("/endless", DropReason.TOO_MANY_BYTES),
        ("/hang_up", DropReason.CONNECTION_ERROR),
        ("/garbage", DropReason.CONNECTION_ERROR),
        ("/slow/5/a.jpg", DropReason.TIMEOUT),
        ("/drip/5/a.jpg", DropReason.TIMEOUT),
        ("/robots_tag/noai/a.jpg", DropReason.ROBOTS_DIRECTIVE),
        ("/robots_tag/all, NoIndex/a.jpg", DropReason.ROBOTS_DIRECTIVE),
        ("/status/200", DropReason.NOT_AN_IMAGE),
    ],
)
def test_bad_responses_have_a_reason(server: TestServer, path: str, expected: DropReason) -> None:
    [result] = fetch(fetcher(max_bytes=1_000_000), [f"{server.url}{path.replace(' ', '%20')}"])
    assert reason(result) == expected


@pytest.mark.parametrize(
    "path", ["/files/a.jpg", "/redirect/5/a.jpg", "/drip/0.5/a.jpg", "/robots_tag/other: noai/a.jpg"]
)
def test_good_responses_are_complete(server: TestServer, path: str) -> None:
    assert fetch(fetcher(), [f"{server.url}{path}"]) == [BODY]


def test_no_such_host_no_url_no_server(server: TestServer) -> None:
    urls = ["http://no-such-host.invalid/a.jpg", None, "", "not a URL", "ftp://example.org/a.jpg", "http://[::1",
            "http://127.0.0.1:1/a.jpg", f"{server.url}/files/a.jpg"]  # fmt: skip
    results = fetch(fetcher(), urls)
    assert [reason(result) for result in results[:-1]] == [
        DropReason.DNS_ERROR, *[DropReason.INVALID_URL] * 5, DropReason.CONNECTION_ERROR]  # fmt: skip
    assert results[-1] == BODY


def test_a_thousand_at_once_over_few_connections(server: TestServer) -> None:
    loop = fetcher(per_host=16)
    urls = [f"{server.url}/files/a.jpg?{index}" for index in range(1000)]
    assert fetch(loop, urls) == [BODY] * 1000
    assert server.num_connections <= 17
    assert 4 <= server.most_open <= 16
    num_connections = server.num_connections
    assert fetch(loop, urls[:50]) == [BODY] * 50, "the next shard"
    assert server.num_connections == num_connections


def test_one_slow_host_does_not_hold_up_the_others(server: TestServer) -> None:
    """One host does not answer before all responses of the other host arrived."""
    with serve(pages={"a.jpg": BODY}) as other:
        urls = [f"{server.url}/held/a.jpg?{index}" for index in range(20)]
        urls += [f"{other.url}/files/a.jpg?{index}" for index in range(100)]
        ended: list[int] = []
        for row, outcome in fetcher(per_host=10, timeout_s=60, first_byte_timeout_s=60).fetch(list(enumerate(urls))):
            ended.append(row)
            assert not isinstance(outcome, SampleError)
            outcome.close()
            if len(ended) == 100:
                server.release.set()
        assert sorted(ended[:100]) == list(range(20, 120))
        assert server.most_open == 10


def test_redirects_may_wait_for_their_turn(server: TestServer) -> None:
    """Time in the queue of a busy host does not count as time of the transfer."""
    with serve() as start:
        urls = [f"{start.url}/redirect_to?url={server.url}/slow/0.6/a.jpg" for _ in range(8)]
        assert fetch(fetcher(per_host=2, timeout_s=1.5), urls) == [BODY] * 8


def test_each_timeout_ends_its_phase(server: TestServer) -> None:
    """192.0.2.1 (reserved for documentation) does not answer, or the network refuses it at once."""
    start = time.monotonic()
    limits = {"timeout_s": 300, "connect_timeout_s": 0.5, "first_byte_timeout_s": 1, "obey_robots_txt": False}
    urls = ["http://192.0.2.1/a.jpg", f"{server.url}/slow/20/a.jpg", f"{server.url}/drip/2/a.jpg"]
    nowhere, silent, slow = fetch(fetcher(**limits), urls)
    assert reason(nowhere) in (DropReason.TIMEOUT, DropReason.CONNECTION_ERROR)
    assert reason(silent) == DropReason.TIMEOUT
    assert "no first byte within 1 s" in str(silent)
    assert slow == BODY, "it began in time, and the whole may take longer"
    assert time.monotonic() - start < 100


def test_private_addresses_are_refused(server: TestServer) -> None:
    port = server.server_port
    urls = [f"http://{host}:{port}/files/a.jpg" for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]")]
    urls += ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://[::ffff:127.0.0.1]/", "http://0/"]
    for obey_robots_txt in (True, False):
        results = fetch(fetcher(allow_private_addresses=False, obey_robots_txt=obey_robots_txt), urls)
        assert {reason(result) for result in results} == {DropReason.PRIVATE_ADDRESS}
    assert not server.requests


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("100.64.0.1", False), ("192.168.1.1", False), ("172.16.0.9", False),
     ("224.0.0.1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False),
     ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
     ("64:ff9b:1::7f00:1", False), ("64:ff9b:1::808:808", False), ("::127.0.0.1", False),
     ("::8.8.8.8", False), ("::ffff:0:127.0.0.1", False), ("fec0::1", False), ("feff::1", False),
     ("2002:808:808::", False), ("2001:0:7f00:1::", False), ("2001:db8::1", False), ("3fff::1", False),
     ("5f00::1", False), ("100::1", False), ("ff0e::1", False), ("64:ff9b::808:808", True), ("::ffff:8.8.8.8", True),
     ("2001:4860:4860::8888", True), ("240.0.0.1", False), ("192.0.2.1", False),
     ("255.255.255.255", False), ("0.0.0.0", False)],
)  # fmt: skip
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) == expected


def test_no_room_means_no_new_requests(server: TestServer) -> None:
    """No request starts before there is capacity; then all rows end."""
    start = time.monotonic()
    requests = [(index, f"{server.url}/files/a.jpg?{index}") for index in range(30)]
    for _, outcome in fetcher().fetch(requests, has_capacity=lambda: time.monotonic() - start > 0.5):
        assert time.monotonic() - start > 0.5
        assert not isinstance(outcome, SampleError)
        outcome.close()


def test_a_caller_that_goes_away_leaves_nothing_in_flight(server: TestServer) -> None:
    loop = fetcher()
    answers = loop.fetch([(index, f"{server.url}/slow/1/a.jpg?{index}") for index in range(20)] + [(20, None)])
    assert next(answers)[0] == 20
    answers.close()
    assert fetch(loop, [f"{server.url}/files/a.jpg"]) == [BODY]


def test_large_bodies_spool_to_disk(server: TestServer) -> None:
    server.pages["large.bin"] = bytes(5_000_000)
    [(_, outcome)] = list(fetcher().fetch([(0, f"{server.url}/files/large.bin")]))
    assert not isinstance(outcome, SampleError)
    with outcome:
        assert outcome.is_on_disk
        assert len(outcome.read()) == 5_000_000


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(pages={"a.jpg": BODY}) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"{server.url.replace('http', 'https')}/files/a.jpg"
        assert reason(fetch(fetcher(retries=3), [url])[0]) == DropReason.CONNECTION_ERROR
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(fetcher(), [url] * 50) == [BODY] * 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [("http://Example.org/a b.jpg#top", "http://example.org/a%20b.jpg"),
     ("https://example.org/%C3%A9?x=1&y=é", "https://example.org/%C3%A9?x=1&y=%C3%A9"),
     ("http://bücher.example/", "http://xn--bcher-kva.example/"), ("http://user:word@example.org/", "http://example.org/"),
     ("HTTP://example.org", "http://example.org/"), ("http://[2001:db8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
     ("http://exa mple.org/", None), ("http://example.org:99999/", None), ("http:///x", None), ("javascript:x", None),
     ("http://" + "x" * 9000, None), ("http://example.org/\r\nHost: evil", "http://example.org/Host:%20evil")],
)  # fmt: skip
def test_clean_urls(text: str, expected: str | None) -> None:
    assert clean_url(text) == expected


@given(st.from_regex(r"https?://[a-zA-Z0-9.\-]{1,9}(:[0-9]{0,3})?(/[ -~é]{0,20})?(\?[ -~]{0,10})?(#[a-z]{0,2})?\n?"))
def test_clean_urls_pass_without_parsing(url: str) -> None:
    assert clean_url(url) == clean_slowly(url)


def test_redirect_targets() -> None:
    assert redirect_target("http://a.org/x/y", "../z w") == "http://a.org/z%20w"
    assert redirect_target("http://a.org/x", "//b.org/y") == "http://b.org/y"
    assert redirect_target("http://a.org/x", "http://[broken") is None


@pytest.mark.parametrize(
    ("path", "requested"),
    [("/a/b.jpg", "/a/b.jpg"), ("/x/../private/a.jpg", "/private/a.jpg"), ("/x/%2e%2E/private/a", "/private/a"),
     ("/x/.%2e/private/a", "/private/a"), ("/./a", "/a"), ("/%2e/a", "/a"), ("/../../a", "/a"), ("/a/..", "/"),
     ("/a/.", "/a/"), ("/a/b/../", "/a/"), ("/a//../b", "/a/b"), ("/a/...", "/a/..."),
     ("/.well-known/a", "/.well-known/a"),
     ("/a?b=/../c", "/a?b=/../c"), ("/a%2Fb/../c", "/c")],
)  # fmt: skip
def test_dot_segments_are_removed_from_requests(path: str, requested: str) -> None:
    assert requested_url(f"http://example.org{path}") == f"http://example.org{requested}"
    assert clean_url(f"http://example.org{path}") == f"http://example.org{path}", "uids stay as they are"


def test_unreserved_characters_are_decoded_for_robots_txt() -> None:
    assert robots_url("http://a.b/%70riv%61te/%7Ex%2Fy%20z%2b") == "http://a.b/private/~x%2Fy%20z%2b"


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://user:pw@host/x.jpg", "http://host/x.jpg"), ("HTTPS://u@Host:80?q=a@b", "HTTPS://Host:80?q=a@b"),
     ("http://u:p@w@host/", "http://host/"), (" http://u:p@host", " http://host"), ("//u:p@host/x", "//host/x"),
     ("http:/\t/u:p@host/", "http:/\t/host/"), ("ftp://u:p@[::1]/x", "ftp://[::1]/x"),
     ("http://host/a@b.jpg", "http://host/a@b.jpg"), ("http://host?a@b", "http://host?a@b"), ("a@b", "a@b"), ("", "")],
)  # fmt: skip
def test_user_and_password_are_removed(url: str, expected: str) -> None:
    assert without_userinfo(url) == expected
    assert clean_url(url) == clean_url(expected)
