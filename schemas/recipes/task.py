"""The task of a training run: what is trained. The base class of all kinds, built in or from other packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pairloom.registry import TASKS, PartOf
from pairloom.schemas.recipes.load import StrictModel

if TYPE_CHECKING:
    from pairloom.schemas.recipes.train import TrainRecipe

TokenizerFamily = Literal["byte-level", "siglip2"]
TrainTokenizer = Callable[[TokenizerFamily], str]
"""Trains a tokenizer on the captions of the data, once per run; returns its folder."""


class TaskRecipe(StrictModel):
    """Recipe part of a task. A subclass gives `kind` a Literal type, adds its own fields and builds the task.

    Its module imports no torch: recipes are read by commands that do not train.
    """

    kind: str

    def check(self, recipe: TrainRecipe) -> None:
        """Raise ValueError where other parts of the recipe do not fit this task."""

    def tokenizer_folder(self, recipe: TrainRecipe, train: TrainTokenizer) -> str | None:
        """Folder of the run's tokenizer; None: the task needs none, or takes that of its model. Raises UserError."""
        if recipe.tokenizer.path is not None:
            return recipe.tokenizer.path
        return train("byte-level") if recipe.tokenizer.train is not None else None

    def build(self, recipe: TrainRecipe, tokenizer_folder: str | None) -> Any:
        """The `pairloom.trainers.task.Task` of a recipe. Raises UserError."""
        raise NotImplementedError(f"task {self.kind} builds nothing")


TaskPart = Annotated[TaskRecipe, PartOf(TASKS)]
