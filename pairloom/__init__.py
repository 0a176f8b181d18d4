"""pairloom: image URLs to a curated WebDataset to CLIP, SigLIP and LLaVA, and back as the filter of the next round.

    import pairloom

    recipe = pairloom.load_recipe("curate.yaml", {"select.min_words": 3})
    pairloom.curate(recipe)
    data = pairloom.open("out/pairs")
    data.sql("SELECT drop_reason, count(*) FROM samples GROUP BY 1").show()

These names are the public API; every other module is internal and may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairloom import algorithms, plugins
    from pairloom.api import curate, doctor, evaluate, export, gc, inspect, load_recipe, recall, train
    from pairloom.data_set import DataSet, Difference, Sample
    from pairloom.data_set import open_data_set as open
    from pairloom.schemas.errors import (
        InputError,
        PairloomError,
        RecipeError,
        SampleError,
        ShardError,
        StorageError,
        UserError,
    )
    from pairloom.schemas.recipes.curate import CurateRecipe
    from pairloom.schemas.recipes.train import TrainRecipe

__all__ = [
    "CurateRecipe",
    "DataSet",
    "Difference",
    "InputError",
    "PairloomError",
    "RecipeError",
    "Sample",
    "SampleError",
    "ShardError",
    "StorageError",
    "TrainRecipe",
    "UserError",
    "algorithms",
    "curate",
    "doctor",
    "evaluate",
    "export",
    "gc",
    "inspect",
    "load_recipe",
    "open",
    "plugins",
    "recall",
    "train",
]
_API = ("curate", "doctor", "evaluate", "export", "gc", "inspect", "load_recipe", "recall", "train")
_ERRORS = ("InputError", "PairloomError", "RecipeError", "SampleError", "ShardError", "StorageError", "UserError")
_HOMES = {
    **dict.fromkeys(_API, "pairloom.api"),
    **dict.fromkeys(_ERRORS, "pairloom.schemas.errors"),
    "DataSet": "pairloom.data_set",
    "Difference": "pairloom.data_set",
    "Sample": "pairloom.data_set",
    "CurateRecipe": "pairloom.schemas.recipes.curate",
    "TrainRecipe": "pairloom.schemas.recipes.train",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use: `import pairloom` takes no time, and child processes load what they need."""
    if name == "open":
        return import_module("pairloom.data_set").open_data_set
    if name in ("algorithms", "plugins"):
        return import_module(f"pairloom.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pairloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
