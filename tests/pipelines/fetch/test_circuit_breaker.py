"""A network outage during a shard: no row is lost if it ends, and the shard is not done if it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker, NetworkDownError
from pairloom.pipelines.fetch.fetch_shard import fetch_rows
from pairloom.pipelines.fetch.scheduler import Host, Job
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


# ---- the breaker alone, without a network

GOOD, DEAD = "http://good.test", "http://dead.test"


def failed_job(breaker: CircuitBreaker, row: int) -> Job:
    """A row of a dead host whose failure is deferred."""
    job = Job(row, f"{DEAD}/{row}", f"{DEAD}/{row}", Host(DEAD, "dead.test", 1), 1.0)
    assert breaker.defer(job, SampleError(DropReason.CONNECTION_ERROR))
    return job


def opened_breaker(patience_s: float = 60.0) -> CircuitBreaker:
    """Many exchanges succeeded, then as many failed."""
    breaker = CircuitBreaker(patience_s)
    breaker.begin_shard(100)
    for has_failed in [False] * 50 + [True] * 50:
        breaker.record_exchange(DEAD if has_failed else GOOD, has_failed)
    assert breaker.update(100, is_idle=False) == []
    assert breaker.is_open
    return breaker


def test_probes_that_are_answered_close_the_circuit_and_confirm_the_failures() -> None:
    breaker = opened_breaker()
    failed_job(breaker, 7)
    assert breaker.update(1, is_idle=True) == [], "nothing is reported while the circuit is open"
    assert breaker.due_probes() == [GOOD]
    assert breaker.due_probes() == [], "one round at a time"
    assert not breaker.record_probe(True), "there was no outage"
    assert not breaker.is_open
    assert [(row, error.drop_reason) for row, error in breaker.update(1, is_idle=True)] == [
        (7, DropReason.CONNECTION_ERROR)
    ]


def test_after_an_outage_the_failed_rows_are_fetched_again() -> None:
    breaker = opened_breaker()
    job = failed_job(breaker, 7)
    breaker.record_dns_failure("dead.test", SampleError(DropReason.DNS_ERROR))
    assert breaker.due_probes() == [GOOD]
    assert not breaker.record_probe(False)
    assert 0 < breaker.seconds_to_probe() <= 0.5
    time.sleep(breaker.seconds_to_probe())
    assert breaker.due_probes() == [GOOD]
    assert breaker.record_probe(True), "the network is back"
    assert breaker.take_outage_jobs() == [job]
    assert breaker.dns_failure("dead.test") is None, "the name may resolve"


def test_patience_ends() -> None:
    breaker = opened_breaker(patience_s=0.0)
    breaker.due_probes()
    breaker.record_probe(False)
    time.sleep(breaker.seconds_to_probe())
    with pytest.raises(NetworkDownError, match="the network is down"):
        breaker.due_probes()


def test_a_shard_without_any_image_is_refused_unless_all_may_fail() -> None:
    errors = [SampleError(DropReason.TIMEOUT, "too slow")] * 20
    breaker = CircuitBreaker(60.0)
    breaker.begin_shard(20, all_may_fail=True)
    for error in errors:
        breaker.check_outcome(error)
    breaker.begin_shard(20, all_may_fail=False)
    for error in errors[:-1]:
        breaker.check_outcome(error)
    with pytest.raises(NetworkDownError, match="none of 20 images could be fetched"):
        breaker.check_outcome(errors[-1])
