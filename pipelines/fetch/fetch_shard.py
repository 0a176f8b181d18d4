"""Fetch the URLs of one shard: with the process's event loop, under the cluster's limits, on a network that works."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import lru_cache

from pairloom.pipelines.fetch.circuit_breaker import NetworkDownError
from pairloom.pipelines.fetch.fetcher import Fetcher, Outcome
from pairloom.pipelines.fetch.network_watch import NetworkWatch
from pairloom.pipelines.fetch.ray_host_limits import find_host_limits
from pairloom.schemas.errors import ShardError
from pairloom.schemas.recipes.curate import FetchRecipe


def fetch_rows(
    recipe: FetchRecipe,
    name: str,
    requests: Sequence[tuple[int, str | None]],
    has_room: Callable[[], bool],
    is_retry: bool = False,
) -> Generator[tuple[int, Outcome], None, None]:
    """Fetch `(row, url)` pairs of a shard; yields (row, body or error), one for each.

    The caller owns and closes the bodies. Raises ShardError where the network is dead; that
    no row of a retry could be fetched does not say so.
    """
    network = NetworkWatch(name, len(requests))
    limits = find_host_limits(recipe.per_host)
    try:
        with closing(_fetcher(recipe.model_dump_json()).fetch(requests, has_room, limits)) as answers:
            for row, answer in answers:
                if not is_retry:
                    network.note(answer)
                yield row, answer
    except NetworkDownError as error:
        raise ShardError(f"shard {name}: {error}") from error


@lru_cache(maxsize=1)
def _fetcher(recipe_json: str) -> Fetcher:
    """One event loop a process: its connections and robots.txt rules serve the next shard too."""
    return Fetcher(FetchRecipe.model_validate_json(recipe_json))
