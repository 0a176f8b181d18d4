"""A network outage during a shard: no row is lost if it ends, and the shard is not done if it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pairloom.pipelines.fetch.circuit_breaker import NetworkDownError
from pairloom.pipelines.fetch.fetch_shard import fetch_rows
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError, ShardError
from pairloom.schemas.recipes.curate import FetchRecipe
from tests.support.fetching import BODY, fetch, fetcher, reason
from tests.support.http_server import TestServer, serve

NUM_SERVERS = 4


@contextmanager
def servers() -> Iterator[list[TestServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serve(pages={"a.jpg": BODY})) for _ in range(NUM_SERVERS)]


def urls_of(running: list[TestServer], num_urls: int, first: int = 0) -> list[str]:
    return [f"{running[index % len(running)].url}/files/a.jpg?{index}" for index in range(first, first + num_urls)]


def die_after(running: list[TestServer], num_requests: int, back_after_s: float | None) -> threading.Thread:
    """Stop all servers after `num_requests` requests; start them again on the same ports after `back_after_s`."""

    def watch() -> None:
        while sum(sum(server.requests.values()) for server in running) < num_requests:
            time.sleep(0.002)
        for server in running:
            server.die()
        if back_after_s is not None:
            time.sleep(back_after_s)
            for server in running:
                server.come_back()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_an_outage_in_the_middle_loses_nothing() -> None:
    with servers() as running:
        thread = die_after(running, 200, back_after_s=2)
        assert fetch(fetcher(per_host=4, retries=1), urls_of(running, 600)) == [BODY] * 600
        thread.join()
        assert all(server.num_deaths == 1 for server in running)


def test_an_outage_that_stays_ends_the_shard() -> None:
    with servers() as running:
        loop = fetcher(per_host=4, outage_patience_s=1)
        die_after(running, 200, back_after_s=None).join(0)
        with pytest.raises(NetworkDownError, match="the network is down: none of the hosts that answered before"):
            fetch(loop, urls_of(running, 600))
        for server in running:
            server.come_back()
        assert fetch(loop, urls_of(running, 20)) == [BODY] * 20, "the next shard of the same process"


def test_a_shard_that_meets_an_outage_is_named_in_the_error() -> None:
    recipe = FetchRecipe(allow_private_addresses=True, per_host=4, retries=0, outage_patience_s=0.5)
    with servers() as running:
        die_after(running, 200, back_after_s=None)
        requests = list(enumerate(urls_of(running, 600)))
        with pytest.raises(ShardError, match="shard 0000/0000007: the network is down"):
            for _, outcome in fetch_rows(recipe, "0000/0000007", requests, lambda: True):
                assert not isinstance(outcome, SampleError), "no row ends for the network's sake"


def test_an_outage_between_two_shards_is_found() -> None:
    with servers() as running:
        loop = fetcher(per_host=4, outage_patience_s=0.5)
        assert fetch(loop, urls_of(running, 40)) == [BODY] * 40
        for server in running:
            server.die()
        with pytest.raises(NetworkDownError):
            fetch(loop, urls_of(running, 8))  # fewer rows than a window holds


def test_dead_hosts_are_no_outage() -> None:
    """Nine of ten hosts are dead; the hosts that answered before still answer."""
    with servers() as running:
        loop = fetcher(retries=0, outage_patience_s=5)
        dead = [f"http://127.0.0.{index}:1/a.jpg" for index in range(2, 102)]
        results = fetch(loop, [*urls_of(running, 60), *dead, *urls_of(running, 12, 60)])
        assert results[:60] == [BODY] * 60
        assert results[160:] == [BODY] * 12
        assert {reason(result) for result in results[60:160]} == {DropReason.CONNECTION_ERROR}


def test_one_host_that_dies_is_given_up_and_the_others_go_on() -> None:
    with servers() as running:
        loop = fetcher(per_host=2, retries=1)
        assert fetch(loop, urls_of(running, 8)) == [BODY] * 8
        dying, *alive = running
        dying.die()
        results = fetch(loop, [f"{dying.url}/files/a.jpg?{index}" for index in range(500)] + urls_of(alive, 300))
        assert results[500:] == [BODY] * 300
        assert {reason(result) for result in results[:500]} == {DropReason.CONNECTION_ERROR}
        last = [result for result in results[:500] if isinstance(result, SampleError) and "in a row" in str(result)]
        assert len(last) > 400
