"""A bounded cache of values that can be made again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class LruCache(LRUCache[Hashable, T]):
    """The `maxsize` values that were used last. It is pickled empty: open files do not travel to other processes."""

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is missing."""
        try:
            return self[key]
        except KeyError:
            self[key] = value = make()
            return value

    def __reduce__(self) -> tuple[type[LruCache[T]], tuple[float]]:
        return type(self), (self.maxsize,)
