"""Fetch URLs with one fetcher and collect the outcomes in order."""

from __future__ import annotations

from collections.abc import Sequence

from pairloom.pipelines.fetch.fetcher import Fetcher
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe

BODY = b"image bytes " * 1000


def fetcher(**settings: object) -> Fetcher:
    """A fetcher that may reach servers of this machine and does not retry."""
    defaults: dict[str, object] = {"allow_private_addresses": True, "timeout_s": 2, "retries": 0}
    return Fetcher(FetchRecipe.model_validate({**defaults, **settings}))


def fetch(loop: Fetcher, urls: Sequence[str | None]) -> list[bytes | SampleError]:
    """Outcomes in the order of the URLs."""
    results: dict[int, bytes | SampleError] = {}
    for row, outcome in loop.fetch(list(enumerate(urls))):
        assert row not in results
        if isinstance(outcome, SampleError):
            results[row] = outcome
        else:
            with outcome:
                results[row] = outcome.read()
    assert len(results) == len(urls)
    return [results[row] for row in range(len(urls))]


def reason(result: bytes | SampleError) -> DropReason:
    """The drop reason of an outcome that must be an error."""
    assert isinstance(result, SampleError), "bytes, where a reason was expected"
    return result.drop_reason
