"""A dict that cannot change and can be hashed, for free-form settings in a recipe."""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """Nested dicts are frozen, too."""

    def __init__(self, values: dict[str, Any]) -> None:
        frozen = {key: FrozenDict(value) if isinstance(value, dict) else value for key, value in values.items()}
        super().__init__(frozen)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a recipe cannot change; make another one")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]
