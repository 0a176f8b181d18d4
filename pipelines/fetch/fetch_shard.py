"""Fetch the URLs of one shard with the process's fetcher, under the limits of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import lru_cache

from pairloom.pipelines.fetch.circuit_breaker import NetworkDownError
from pairloom.pipelines.fetch.fetcher import Fetcher
from pairloom.pipelines.fetch.ray_host_limits import find_host_limits
from pairloom.pipelines.fetch.response_handler import Outcome
from pairloom.schemas.errors import ShardError
from pairloom.schemas.recipes.curate import FetchRecipe


def fetch_rows(
    recipe: FetchRecipe,
    name: str,
    requests: Sequence[tuple[int, str | None]],
    has_capacity: Callable[[], bool],
    is_retry: bool = False,
) -> Generator[tuple[int, Outcome], None, None]:
    """Fetch `(row, url)` pairs of the shard `name`; yields (row, body or error) once per pair.

    The caller owns and closes the bodies. Raises ShardError if the network is down. All rows of a retry may fail
    although the network works, so that this alone raises no error.
    """
    limits = find_host_limits(recipe.per_host)
    fetcher = _fetcher(recipe)
    try:
        with closing(fetcher.fetch(requests, has_capacity, limits, all_may_fail=is_retry)) as outcomes:
            yield from outcomes
    except NetworkDownError as error:
        raise ShardError(f"shard {name}: {error}") from error


@lru_cache(maxsize=1)
def _fetcher(recipe: FetchRecipe) -> Fetcher:
    """One fetcher per process: its connections and robots.txt rules serve the next shard too."""
    return Fetcher(recipe)
