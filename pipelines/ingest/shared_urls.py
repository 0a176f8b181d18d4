"""Rows of a shard with the same URL, such as several captions of one image: it is fetched and decoded once."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeVar

from pairloom.pipelines.images.boxes import Boxes

Outcome = TypeVar("Outcome")


class SharedUrls:
    """Collects requests; `share` copies the outcome of a request to all rows with the same URL and boxes."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, str | None]] = []  # row, url
        self._first: dict[tuple[str | None, Boxes], int] = {}
        self._others: dict[int, int] = {}

    def add(self, row: int, url: str | None, boxes: Boxes) -> None:
        """Add a row with its URL and the boxes to blur."""
        first = self._first.setdefault((url, tuple(boxes)), row)
        if first == row:
            self.requests.append((row, url))
        else:
            self._others[row] = first

    def share(self, outcomes: MutableMapping[int, Outcome]) -> None:
        """Copy the outcome of the first row of each request to its other rows."""
        for row, first in self._others.items():
            outcomes[row] = outcomes[first]
