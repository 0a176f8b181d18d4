"""The reader of a recipe's source."""

from __future__ import annotations

from pairloom.pipelines.sources.source import Source
from pairloom.schemas.recipes.source import SourceRecipe


def open_source(recipe: SourceRecipe) -> Source:
    """The reader for the recipe's kind of source."""
    source: Source = recipe.open()
    return source
