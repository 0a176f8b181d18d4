"""Limits per host hold over all workers: the service alone, and real workers on Ray against a real server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
import ray

from pairloom.pipelines.fetch.fetcher import Fetcher
from pairloom.pipelines.fetch.host_limits import LeaseTimes, LocalLimits, RateLimiterService, SlotGrant, SlotRequest
from pairloom.pipelines.fetch.ray_host_limits import SharedLimits, find_host_limits, shared_host_limits
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe
from tests.support.http_server import TestServer, serve

PER_HOST = 4


@pytest.fixture
def server() -> Iterator[TestServer]:
    with serve(pages={"a.jpg": b"image"}) as running:
        yield running


def slots(service: RateLimiterService, worker: str, wanted: int, in_flight: int = 0, interval_s: float = 0.0) -> int:
    return service.exchange(worker, {"http://a": SlotRequest(wanted, in_flight, interval_s)})["http://a"].slots


def test_slots_are_shared_fairly_and_never_exceed_the_limit() -> None:
    service = RateLimiterService(8)
    assert slots(service, "one", 100) == 8, "nobody else wants them"
    assert slots(service, "two", 100) == 0, "all are held"
    assert slots(service, "one", 100, in_flight=8) == 4, "the fair half"
    assert slots(service, "two", 100) == 0, "those of the first are still in flight"
    assert slots(service, "one", 100, in_flight=4) == 4
    assert slots(service, "two", 100) == 4
    assert slots(service, "one", 0) == 0, "given back"
    assert slots(service, "two", 100, in_flight=4) == 8
    assert slots(service, "two", 3, in_flight=3) == 3
    assert slots(service, "three", 100) == 5


def test_scarce_slots_rotate() -> None:
    service = RateLimiterService(2, LeaseTimes(max_hold_s=0.02))
    workers = [f"worker {index}" for index in range(5)]
    held: Counter[str] = Counter()
    for _ in range(60):
        now = {worker: slots(service, worker, 10) for worker in workers}
        assert sum(now.values()) <= 2
        held.update(worker for worker, number in now.items() if number)
        time.sleep(0.005)
    assert len(held) == 5, "each had its turn"


def test_the_lease_of_a_dead_worker_expires() -> None:
    service = RateLimiterService(4, LeaseTimes(lease_s=0.05))
    assert (slots(service, "one", 9), slots(service, "two", 9)) == (4, 0)
    time.sleep(0.06)
    assert slots(service, "two", 9) == 4


def test_rate_limited_host_has_one_worker() -> None:
    service = RateLimiterService(8)
    assert slots(service, "one", 9, interval_s=2.0) == 8
    assert slots(service, "two", 9) == 0
    given_back = service.exchange("one", {"http://a": SlotRequest(0, pause_s=1.5)})
    assert given_back == {"http://a": SlotGrant(0)}
    grant = service.exchange("two", {"http://a": SlotRequest(9)})["http://a"]
    assert grant.slots == 8
    assert 1.4 < grant.wait_s <= 1.5, "the pace goes on where the other worker left it"


def test_one_worker_asks_for_robots_txt() -> None:
    service = RateLimiterService(8)
    wish = {"http://a": SlotRequest(1, needs_robots=True)}
    assert service.exchange("one", wish)["http://a"].fetches_robots
    assert not service.exchange("two", wish)["http://a"].fetches_robots
    assert service.exchange("one", wish)["http://a"].fetches_robots
    service.share_robots("http://a", b"User-agent: *\nCrawl-delay: 3\n", 3.0)
    assert service.exchange("two", wish)["http://a"].robots == b"User-agent: *\nCrawl-delay: 3\n"


@ray.remote
class Worker:
    """A worker of an ingest that only fetches."""

    def __init__(self, **settings: object) -> None:
        defaults: dict[str, object] = {"allow_private_addresses": True, "retries": 0, "per_host": PER_HOST}
        self._recipe = FetchRecipe.model_validate({**defaults, **settings})
        self._fetcher = Fetcher(self._recipe)

    def fetch(self, urls: list[str]) -> tuple[list[str], bool]:
        """The outcomes in the order of the URLs, and whether the limits were shared to the end."""
        limits = find_host_limits(PER_HOST)
        results = {}
        for row, outcome in self._fetcher.fetch(list(enumerate(urls)), limits=limits):
            results[row] = str(outcome.drop_reason) if isinstance(outcome, SampleError) else "image"
            if not isinstance(outcome, SampleError):
                outcome.close()
        return [results[row] for row in range(len(urls))], limits.is_shared


def fetch_with(num_workers: int, urls: list[str], **settings: object) -> Counter[str]:
    workers = [
        Worker.options(num_cpus=0.1).remote(**settings)  # type: ignore[attr-defined]
        for _ in range(num_workers)
    ]
    parts = ray.get([worker.fetch.remote(urls[index::num_workers]) for index, worker in enumerate(workers)])
    for worker in workers:
        ray.kill(worker)
    assert all(is_shared for _, is_shared in parts)
    return Counter(result for results, _ in parts for result in results)


def test_workers_share_a_limit_and_a_robots_txt(server: TestServer, ray_session: None) -> None:
    server.robots_txt = b"User-agent: *\nDisallow: /files/forbidden\n"
    urls = [f"{server.url}/slow/0.02/a.jpg?{index}" for index in range(180)]
    urls += [f"{server.url}/files/forbidden/{index}" for index in range(12)]
    with shared_host_limits(PER_HOST):
        assert fetch_with(3, urls) == {"image": 180, "robots_txt": 12}
    assert server.requests["/robots.txt"] == 1
    assert 2 <= server.most_open <= PER_HOST


def test_a_crawl_delay_holds_over_workers(server: TestServer, ray_session: None) -> None:
    server.robots_txt = b"User-agent: *\nCrawl-delay: 0.25\n"
    with shared_host_limits(PER_HOST):
        assert fetch_with(2, [f"{server.url}/files/a.jpg?{index}" for index in range(8)]) == {"image": 8}
    times = sorted(server.started_at[path] for path in server.requests if path.startswith("/files/"))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) > 0.2


def test_without_a_service_each_worker_uses_its_share(server: TestServer, ray_session: None) -> None:
    assert isinstance(find_host_limits(PER_HOST), LocalLimits), "no ingest is running"
    fetcher = Fetcher(FetchRecipe(allow_private_addresses=True, retries=0, per_host=PER_HOST))
    urls = [f"{server.url}/slow/0.02/a.jpg?{index}" for index in range(60)]
    outcomes = [outcome for _, outcome in fetcher.fetch(list(enumerate(urls)), limits=find_host_limits(PER_HOST))]
    assert not any(isinstance(outcome, SampleError) for outcome in outcomes)
    assert server.most_open == PER_HOST // 2, "of two workers, who cannot hear of each other"


def test_after_the_service_dies_each_worker_uses_its_share(server: TestServer, ray_session: None) -> None:
    recipe = FetchRecipe(allow_private_addresses=True, retries=0, per_host=PER_HOST)
    fetcher = Fetcher(recipe, LeaseTimes(renew_s=0.05))
    urls = [f"{server.url}/slow/0.02/a.jpg?{index}" for index in range(120)]
    with shared_host_limits(PER_HOST):
        limits = find_host_limits(PER_HOST)
        assert isinstance(limits, SharedLimits)
        for number, (_, outcome) in enumerate(fetcher.fetch(list(enumerate(urls)), limits=limits)):
            assert not isinstance(outcome, SampleError)
            if number == 20:
                for actor in limits.actors:
                    ray.kill(actor)
            if number == 80:
                server.most_open = 0
    assert number == 119
    assert not limits.is_shared
    assert server.most_open == PER_HOST // 2
