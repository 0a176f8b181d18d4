"""An evaluation of an exported model. The base class of all kinds, built in or from other packages."""

from __future__ import annotations

from typing import Annotated, Any

from pairloom.registry import EVALUATIONS, PartOf
from pairloom.schemas.recipes.load import StrictModel


class EvaluationRecipe(StrictModel):
    """Recipe part of one evaluation, and the work that measures a model.

    A subclass gives `kind` a Literal type and adds its own fields. Its module imports no torch.
    """

    kind: str
    data: str
    """Path or URL of the evaluation data."""

    def paths(self) -> tuple[str, ...]:
        """Paths and URLs that must exist; a run checks them before it trains."""
        return (self.data,)

    def run(self, model_folder: str) -> dict[str, Any]:
        """Measure the model in a folder: figures by name, flat and ready for JSON. Raises UserError."""
        raise NotImplementedError(f"evaluation {self.kind} measures nothing")


EvaluationPart = Annotated[EvaluationRecipe, PartOf(EVALUATIONS)]
