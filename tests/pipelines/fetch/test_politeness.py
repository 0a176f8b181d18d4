"""Politeness: retries, Retry-After, rates, robots.txt, X-Robots-Tag."""

from __future__ import annotations

import email.utils
import time
from typing import Any
from urllib.parse import quote

import pytest

from pairloom.pipelines.fetch import scheduler as host_queue
from pairloom.pipelines.fetch import transfer
from pairloom.pipelines.fetch.robots import refused_directive
from pairloom.schemas.drop_reason import DropReason
from tests.support.fetching import BODY, fetch, fetcher, reason
from tests.support.http_server import TestServer, serve


@pytest.mark.parametrize("query", ["", "?status=500", "?status=429&retry_after=1"])
def test_errors_that_may_heal_are_retried(server: TestServer, query: str) -> None:
    assert fetch(fetcher(retries=2), [f"{server.url}/flaky/2/a.jpg{query}"]) == [BODY]


def test_errors_that_stay_are_asked_once(server: TestServer) -> None:
    for path in ("/status/404", "/status/403", "/robots_tag/noai/a.jpg"):
        fetch(fetcher(retries=3), [f"{server.url}{path}"])
        assert server.requests[path] == 1
    fetch(fetcher(retries=1), [f"{server.url}/status/503"])
    assert server.requests["/status/503"] == 2


def test_retry_after_is_respected(server: TestServer) -> None:
    start = time.monotonic()
    urls = [f"{server.url}/flaky/1/a.jpg?status=503&retry_after=2", f"{server.url}/files/a.jpg"]
    assert fetch(fetcher(per_host=1, retries=1), urls) == [BODY, BODY]
    assert time.monotonic() - start >= 2


@pytest.mark.parametrize(
    "wait", ["3600", email.utils.formatdate(time.time() + 7200, usegmt=True)], ids=["seconds", "date"]
)
def test_host_with_a_pause_of_an_hour_is_dropped(server: TestServer, wait: str) -> None:
    urls = [f"{server.url}/status/429?retry_after={wait.replace(' ', '%20')}&{index}" for index in range(50)]
    results = fetch(fetcher(per_host=2, retries=5), urls)
    assert {reason(result) for result in results} == {DropReason.HTTP_RATE_LIMITED}
    assert sum(server.requests[url.removeprefix(server.url)] for url in urls) <= 4


def test_a_name_that_does_not_resolve_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_exchanges = 0
    start = transfer.Transfer.start

    def count(*arguments: Any) -> None:
        nonlocal num_exchanges
        num_exchanges += 1
        start(*arguments)

    monkeypatch.setattr(transfer.Transfer, "start", count)
    for settings in ({"per_host": 1, "obey_robots_txt": False}, {"per_host": 32}):
        loop = fetcher(**settings)
        num_exchanges = 0
        for _ in range(2):
            urls = [f"http://no-such-host.invalid/{index}.jpg" for index in range(200)]
            assert {reason(result) for result in fetch(loop, urls)} == {DropReason.DNS_ERROR}
        assert num_exchanges == 1, "for both shards"


@pytest.mark.parametrize("rule", [b"Crawl-delay: 0.3", b"Request-rate: 10/3", b""])
def test_a_site_that_asks_for_slowness_gets_it(server: TestServer, rule: bytes) -> None:
    server.robots_txt = b"User-agent: *\n" + rule + b"\n"
    paths = [f"/files/a.jpg?{index}" for index in range(5)]
    rate = {} if rule else {"requests_per_second_per_host": 3}
    start = time.monotonic()
    assert fetch(fetcher(**rate), [f"{server.url}{path}" for path in paths]) == [BODY] * 5
    assert time.monotonic() - start >= 4 * 0.3, "four waits between five requests"
    assert server.most_open == 1


def test_a_site_that_asks_for_too_much_slowness_holds_nothing_up(server: TestServer) -> None:
    server.robots_txt = b"User-agent: *\nCrawl-delay: 3600\n"
    with serve(pages={"a.jpg": BODY}) as other:
        urls = [f"{server.url}/files/a.jpg?{index}" for index in range(50)]
        urls += [f"{other.url}/files/a.jpg?{index}" for index in range(50)]
        results = fetch(fetcher(host_patience_s=0.5), urls)
    assert results[50:] == [BODY] * 50
    assert sum(result == BODY for result in results[:50]) == 1
    assert {reason(result) for result in results[:50] if result != BODY} == {DropReason.HTTP_RATE_LIMITED}


def test_robots_txt_is_obeyed_and_asked_once(server: TestServer) -> None:
    server.robots_txt = b"User-agent: *\nDisallow: /files/\n\nUser-agent: goodbot\nDisallow:\n"
    urls = [f"{server.url}/files/a.jpg?{index}" for index in range(20)] + [f"{server.url}/drip/0/a.jpg"]
    loop = fetcher()
    for _ in range(2):
        *forbidden, allowed = fetch(loop, urls)
        assert {reason(result) for result in forbidden} == {DropReason.ROBOTS_TXT}
        assert allowed == BODY
    assert server.requests["/robots.txt"] == 1
    assert not any(path.startswith("/files") for path in server.requests)
    assert fetch(fetcher(user_agent="goodbot/2.0"), urls) == [BODY] * 21
    assert fetch(fetcher(obey_robots_txt=False), urls) == [BODY] * 21
    assert server.user_agents == {"pairloom/0.1", "goodbot/2.0"}


def test_robots_txt_holds_for_where_a_redirect_leads(server: TestServer) -> None:
    server.robots_txt = b"User-agent: *\nDisallow: /files/\n"
    with serve() as start:
        results = fetch(fetcher(), [f"{start.url}/redirect_to?url={server.url}/files/a.jpg"])
        assert reason(results[0]) == DropReason.ROBOTS_TXT


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, None), (403, None), (500, DropReason.HTTP_SERVER_ERROR), (429, DropReason.HTTP_RATE_LIMITED)],
)
def test_robots_txt_that_cannot_be_had(server: TestServer, status: int, expected: DropReason | None) -> None:
    server.robots_txt = status
    [result] = fetch(fetcher(), [f"{server.url}/files/a.jpg"])
    assert (result == BODY) if expected is None else (reason(result) == expected)


def test_a_huge_robots_txt_is_cut(server: TestServer) -> None:
    server.robots_txt = b"User-agent: *\nDisallow: /files/\n" + b"# padding\n" * 200_000
    assert reason(fetch(fetcher(), [f"{server.url}/files/a.jpg"])[0]) == DropReason.ROBOTS_TXT


@pytest.mark.parametrize(
    ("header", "expected"),
    [("noai", "noai"), ("NOAI", "noai"), ("all", None), ("pairloom: noai", "noai"), ("otherbot: noai", None),
     ("unavailable_after: 25 Jun 2010 15:00:00 PST", None), ("max-snippet: 20, noai", "noai"), ("", None)],
)  # fmt: skip
def test_directives(header: str, expected: str | None) -> None:
    assert refused_directive(header, "pairloom/0.1", {"noai", "noindex"}) == expected


def test_hosts_take_turns() -> None:
    queue = host_queue.HostQueue(per_host=2)
    urls = [f"http://big.org/{index}" for index in range(5)] + ["http://small.org/0"]
    for row, url in enumerate(urls):
        queue.add(host_queue.Job(row, url, url, queue.host_of(url), 1.0))
    taken = [job.row for job in iter(queue.take, None)]
    assert taken == [0, 5, 1], "two of the big host, the small one between"
    queue.release(queue.host_of(urls[0]))
    assert [job.row for job in iter(queue.take, None)] == [2]


@pytest.mark.parametrize(
    "path", ["x/../private/a.jpg", "x/%2e%2e/private/a.jpg", "%2E/private/a.jpg", "%70rivate/a.jpg"]
)
def test_other_spellings_of_a_forbidden_path_are_forbidden(server: TestServer, path: str) -> None:
    server.robots_txt = b"User-agent: *\nDisallow: /private\nDisallow: /files/private\n"
    urls = [f"{server.url}/{path}", f"{server.url}/redirect_to?url={server.url}/{quote(path)}"]
    assert [reason(result) for result in fetch(fetcher(), urls)] == [DropReason.ROBOTS_TXT] * 2
    assert not any("rivate" in requested.partition("?")[0] for requested in server.requests)
