"""Shared fixtures: one Ray instance, and real data beside the repository."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.http_server import TestServer, serve
from tests.support.ingest_builder import make_pages
from tests.support.shared_data import SHARED_DATA

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no process ends with a long file alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def find_shared_data(name: str) -> Path:
    """A folder of real data; skips the test with a reason if it does not exist."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not at {path}; set PAIRLOOM_SHARED to the folder that holds data/")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("flickr8k")` returns that folder, or skips the test."""
    return find_shared_data


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One embedded Ray with two CPUs for all tests of a run, because its start takes seconds."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def pages() -> dict[str, bytes]:
    """Images by name, and files that are no images."""
    return make_pages()


@pytest.fixture(scope="session")
def image_server(pages: dict[str, bytes]) -> Iterator[TestServer]:
    """Serves `pages`."""
    with serve(pages=pages) as running:
        yield running


@pytest.fixture
def web(pages: dict[str, bytes]) -> Iterator[TestServer]:
    """Serves `pages` to one test, so that it can count requests."""
    with serve(pages=pages) as running:
        yield running
