"""A network outage during a shard: no row is lost if it ends, and the shard is not done if it does not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker, NameProbe, NetworkDownError
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
    breaker.begin_shard()
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
    breaker = opened_breaker(patience_s=0.01)
    breaker.due_probes()
    breaker.record_probe(False)
    time.sleep(breaker.seconds_to_probe())
    with pytest.raises(NetworkDownError, match="the network is down"):
        breaker.due_probes()


def silent_breaker(patience_s: float = 60.0, answers: bool = False, elsewhere: Sequence[str] = ()) -> CircuitBreaker:
    """25 rows of a dead host failed, and nothing shows that the network works."""
    breaker = CircuitBreaker(patience_s, lambda: NameProbe(lambda name: answers))
    breaker.begin_shard(all_may_fail=False, answered_elsewhere=lambda: elsewhere)
    for row in range(25):
        failed_job(breaker, row)
    return breaker


def num_failed(breaker: CircuitBreaker) -> int:
    """Rows that the breaker reports as failed."""
    return len(breaker.update(25, is_idle=True))


def test_a_shard_without_any_answer_is_tested_before_its_rows_fail() -> None:
    breaker = silent_breaker(patience_s=0.01)
    assert num_failed(breaker) == 0
    assert breaker.due_probes() == [DEAD]
    assert not breaker.record_probe(False)
    time.sleep(breaker.seconds_to_probe())
    with pytest.raises(NetworkDownError, match=r"none of 25 images could .*; check the network .*outage_patience_s=0"):
        breaker.due_probes()


@pytest.mark.parametrize(("has_answered", "refused_by"), [(True, None), (False, "127.0.0.1"), (False, "198.51.100.7")])
def test_a_probe_that_is_answered_or_refused_makes_the_failures_real(
    has_answered: bool, refused_by: str | None
) -> None:
    breaker = silent_breaker()
    assert num_failed(breaker) == 0
    breaker.due_probes()
    assert not breaker.record_probe(has_answered, refused_by), "there was no outage"
    assert num_failed(breaker) == 25


def test_a_host_that_answered_another_worker_is_probed() -> None:
    breaker = silent_breaker(elsewhere=[GOOD])
    assert num_failed(breaker) == 0
    assert breaker.due_probes() == [GOOD, DEAD]
    breaker.record_probe(True)
    breaker.record_probe(False)
    assert num_failed(breaker) == 25


def test_a_resolver_that_answers_makes_the_failures_real() -> None:
    names: list[str] = []

    def answers(name: str) -> bool:
        names.append(name)
        return True

    probe = NameProbe(answers)
    breaker = CircuitBreaker(60.0, lambda: probe)
    breaker.begin_shard(all_may_fail=False)
    for row in range(25):
        url = f"http://gone.example/{row}"
        job = Job(row, url, url, Host("http://gone.example", "gone.example", 1), 1.0)
        breaker.defer(job, SampleError(DropReason.TIMEOUT))
    assert num_failed(breaker) == 0
    breaker.due_probes()
    breaker.record_probe(False)
    probe.wait()
    time.sleep(breaker.seconds_to_probe())
    assert breaker.due_probes() == []
    assert num_failed(breaker) == 25
    assert names[0].endswith(".gone.example")
    assert names[0] != "gone.example"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[2001:db8::1]", "localhost", "printer.local", "a..b", "x" * 64 + ".com"]
)
def test_names_that_need_no_network_are_no_probe(host: str) -> None:
    probe = NameProbe(lambda name: True)
    probe.start([host])
    probe.wait()
    assert not probe.has_answered


def test_evidence_all_may_fail_and_no_patience_leave_no_doubt() -> None:
    breaker = silent_breaker()
    breaker.record_evidence()
    assert num_failed(breaker) == 25
    assert num_failed(silent_breaker(patience_s=0.0)) == 25
    retry = silent_breaker()
    retry.begin_shard(all_may_fail=True)
    for row in range(25):
        failed_job(retry, row)
    assert num_failed(retry) == 25


def test_a_host_of_the_network_that_refuses_ends_an_outage_as_real_failures() -> None:
    for refused_by, is_real in (("198.51.100.7", True), ("127.0.0.1", False)):
        breaker = opened_breaker(patience_s=0.01)
        failed_job(breaker, 7)
        breaker.due_probes()
        assert not breaker.record_probe(False, refused_by)
        time.sleep(breaker.seconds_to_probe())
        if is_real:
            assert breaker.due_probes() == []
            assert [row for row, _ in breaker.update(1, is_idle=True)] == [7]
        else:
            with pytest.raises(NetworkDownError):
                breaker.due_probes()


def test_refused_connections_are_recorded_and_silence_is_not() -> None:
    refused = [(row, f"http://127.0.0.1:1/{row}.jpg") for row in range(25)]
    recipe = FetchRecipe(allow_private_addresses=True, obey_robots_txt=False, retries=0, outage_patience_s=5)
    outcomes = [outcome for _, outcome in fetch_rows(recipe, "0000/0000001", refused, lambda: True)]
    assert [reason(outcome) for outcome in outcomes if isinstance(outcome, SampleError)] == ["connection_error"] * 25
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rows = [(row, f"http://127.0.0.1:{silent.getsockname()[1]}/{row}.jpg") for row in range(25)]
        short = recipe.model_copy(update={"timeout_s": 0.2, "connect_timeout_s": 0.2, "outage_patience_s": 0.1})
        with pytest.raises(ShardError, match="none of 25 images could be fetched"):
            list(fetch_rows(short, "0000/0000002", rows, lambda: True))
        forced = short.model_copy(update={"outage_patience_s": 0.0})
        outcomes = [outcome for _, outcome in fetch_rows(forced, "0000/0000002", rows, lambda: True)]
    assert [reason(outcome) for outcome in outcomes if isinstance(outcome, SampleError)] == ["timeout"] * 25
