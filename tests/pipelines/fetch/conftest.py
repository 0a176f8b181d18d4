"""The server that most fetch tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fetching import BODY
from tests.support.http_server import TestServer, serve


@pytest.fixture
def server() -> Iterator[TestServer]:
    """Serves one image and one page that is no image."""
    with serve(pages={"a.jpg": BODY, "page.jpg": b"<html>sorry</html>"}) as running:
        yield running
