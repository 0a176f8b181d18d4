"""The recipes that the installation brings: those for users, then the demo's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

FOLDERS = ("cluster/recipes", "demo/recipes")  # below the package pairloom


@dataclass(frozen=True)
class BuiltInRecipe:
    """A recipe file of the installation."""

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The comment in the first line."""
        return self.path.read_text().splitlines()[0].lstrip("# ")


def built_in_recipes() -> dict[str, BuiltInRecipe]:
    """All of them by name."""
    package = Path(str(files("pairloom")))
    paths = [path for folder in FOLDERS for path in sorted((package / folder).glob("*.yaml"))]
    return {path.stem: BuiltInRecipe(path.stem, path) for path in paths}
