"""A bounded cache whose values can be made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The `capacity` values that were used last. It goes to another process empty: open files do not travel."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        self._values[key] = value = make()
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return value

    def find(self, key: Hashable) -> T | None:
        """The value of `key` where it is there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        return None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return type(self), (self._capacity,)
