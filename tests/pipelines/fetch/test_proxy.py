"""A proxy gets all requests, and its URL is kept nowhere."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from pairloom.schemas.recipes.curate import FetchRecipe
from tests.support.fetching import fetch, fetcher, reason
from tests.support.http_server import TestServer


def test_requests_go_to_the_proxy(server: TestServer) -> None:
    loop = fetcher(proxy=server.url, allow_private_addresses=False, obey_robots_txt=False)
    fetch(loop, ["http://pictures.example/files/a.jpg"])
    assert list(server.requests) == ["http://pictures.example/files/a.jpg"], "the name was not looked up here"


def test_a_proxy_that_is_dead_is_a_connection_error() -> None:
    loop = fetcher(proxy="http://127.0.0.1:1", obey_robots_txt=False)
    assert reason(fetch(loop, ["http://pictures.example/a.jpg"])[0]) == "connection_error"


def test_the_proxy_is_not_written_and_reaches_workers() -> None:
    recipe = FetchRecipe.model_validate({"proxy": "socks5h://user:secret@proxy:1080"})
    assert "secret" not in repr(recipe) + str(recipe) + recipe.model_dump_json() + str(recipe.model_dump())
    copy: FetchRecipe = pickle.loads(pickle.dumps(recipe))
    assert copy.proxy is not None
    assert copy.proxy.get_secret_value() == "socks5h://user:secret@proxy:1080"


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ValidationError, match="not a proxy URL"):
        FetchRecipe.model_validate({"proxy": "ftp://proxy"})
