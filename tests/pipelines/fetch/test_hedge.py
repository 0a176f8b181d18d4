"""Near the end of a shard, attempts of silent requests run at the same time; outcomes do not change."""

from __future__ import annotations

import pytest

from pairloom.pipelines.fetch.scheduler import Hedge, Host, Job
from pairloom.schemas.drop_reason import DropReason
from tests.support.fetching import BODY, fetch, fetcher, reason
from tests.support.http_server import TestServer

SLOW = {"first_byte_timeout_s": 1, "timeout_s": 2, "retries": 2, "obey_robots_txt": False}


def test_all_attempts_of_a_silent_request_run_at_once(server: TestServer) -> None:
    results = fetch(fetcher(**SLOW), [f"{server.url}/files/a.jpg", f"{server.url}/slow/30/a.jpg"])
    assert results[0] == BODY
    assert reason(results[1]) == DropReason.TIMEOUT
    assert server.requests["/slow/30/a.jpg"] == 3, "as many attempts as one after another"
    assert server.most_open == 3


def test_an_attempt_that_answers_late_is_kept(server: TestServer) -> None:
    assert fetch(fetcher(**SLOW), [f"{server.url}/slow/0.6/a.jpg"]) == [BODY]


def test_the_limit_per_host_holds(server: TestServer) -> None:
    loop = fetcher(**SLOW, per_host=1)
    assert reason(fetch(loop, [f"{server.url}/slow/30/a.jpg"])[0]) == DropReason.TIMEOUT
    assert server.requests["/slow/30/a.jpg"] == 3


@pytest.mark.parametrize(
    ("failures", "settled"), [([True, True, True], 2), ([True, False, True], 1), ([False, False, True], 0)]
)
def test_the_first_definite_result_counts_else_the_last_failure(failures: list[bool], settled: int) -> None:
    hedge = Hedge(3)
    assert [hedge.settles(failure) for failure in failures] == [index == settled for index in range(3)]


def test_attempts_that_were_used_are_not_started_again() -> None:
    job = Job(1, "http://a/1", "http://a/1", Host("http://a", "a", 1), 1.0, num_failures=1)
    further = job.hedged(2, 10.0)
    assert [(other.seconds_left, other.num_failures) for other in further] == [(10.0, 2)]
    assert job.hedge is further[0].hedge
