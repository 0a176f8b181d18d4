"""The registries of plug-ins: signals, sources, tasks, exporters and evaluations, built in or from other packages.

Each kind has one registry. A package adds to it by an entry point; the built-in ones are registered in the same way:

    [project.entry-points."pairloom.signals"]
    brightness = "my_package.brightness:Brightness"

The name of the entry point is the `kind` in a recipe. Signals, sources, tasks and evaluations are classes of recipe
parts (pydantic) with the methods that do the work; exporters are functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import core_schema

from pairloom.schemas.errors import InputError

Plugin = TypeVar("Plugin")


class Registry(Generic[Plugin]):
    """The plug-ins of one kind by name. They are imported at their first use."""

    def __init__(self, group: str, noun: str) -> None:
        self.group = group  # of the entry points
        self._noun = noun
        self._registered: dict[str, Plugin] = {}
        self._loaded: dict[str, Plugin] = {}
        self._recipes: list[type[BaseModel]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entry_points(), *self._registered}))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def get(self, name: str) -> Plugin:
        """The plug-in of a name. Raises InputError where there is none, or where it cannot be imported."""
        if name in self._registered:
            return self._registered[name]
        if name not in self._loaded:
            found = self._entry_points().get(name)
            if found is None:
                raise InputError(f"no {self._noun} {name}; there are {', '.join(self)}")
            self._loaded[name] = self._load(found)
        return self._loaded[name]

    def register(self, name: str, plugin: Plugin) -> Plugin:
        """Add a plug-in to this process, for notebooks and tests; packages use an entry point. Returns it."""
        self._registered[name] = plugin
        for recipe in self._recipes:
            recipe.model_rebuild(force=True)
        return plugin

    def used_by(self, recipe: type[BaseModel]) -> None:
        """Name a recipe class that holds parts of this registry; its schema is made again when a plug-in comes."""
        self._recipes.append(recipe)

    def _entry_points(self) -> Mapping[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _load(self, point: EntryPoint) -> Plugin:
        try:
            plugin: Plugin = point.load()
        except (ImportError, AttributeError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self._noun} {point.name}: cannot import {point.value} ({reason}); mend or remove its package"
            ) from error
        return plugin


@dataclass(frozen=True)
class PartOf:
    """Annotation of a recipe field: a part of any kind that the registry has, told apart by `kind`.

    The recipe class that holds it has `defer_build`, so that plug-ins are imported when a recipe is read, not before.
    """

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        choices = {name: self._choice(name, handler) for name in self.registry}
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    def classes(self) -> list[type[BaseModel]]:
        """The parts of all kinds that can be imported."""
        found = []
        for name in self.registry:
            with suppress(InputError):
                found.append(self.registry.get(name))
        return found

    def _choice(self, name: str, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The schema of one kind. A plug-in that cannot be imported is refused where a recipe uses it."""
        try:
            return handler.generate_schema(self.registry.get(name))
        except InputError as error:
            message = str(error)

            def refuse(_: Any) -> Any:
                raise ValueError(message)

            return core_schema.no_info_plain_validator_function(refuse)


SIGNALS: Registry[Any] = Registry("pairloom.signals", "signal")
SOURCES: Registry[Any] = Registry("pairloom.sources", "source")
TASKS: Registry[Any] = Registry("pairloom.tasks", "task")
EXPORTERS: Registry[Any] = Registry("pairloom.exporters", "export format")
EVALUATIONS: Registry[Any] = Registry("pairloom.evaluations", "evaluation")
