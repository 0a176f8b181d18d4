"""What the author of a plug-in needs: base classes, their helpers, and registries. See the how-to pages.

A package adds a plug-in by an entry point of the group "pairloom.signals", "pairloom.sources", "pairloom.tasks",
"pairloom.exporters" or "pairloom.evaluations"; the entry point's name is the `kind` in a recipe. Notebooks may call
`SIGNALS.register(kind, plugin)` instead.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pairloom.registry import EVALUATIONS, EXPORTERS, SIGNALS, SOURCES, TASKS, Registry
from pairloom.schemas.images.preprocess import Preprocess, load_preprocess
from pairloom.schemas.recipes.evaluation import EvaluationRecipe
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import MeasuredSignal, Name, Signal, SignalWork
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.recipes.task import TaskRecipe

if TYPE_CHECKING:
    from pairloom.pipelines.signals.row_signals import CaptionSignal, ImageSignal
    from pairloom.pipelines.sources.source import Piece, Prepared, SourceFile, SourceRow, list_source_files
    from pairloom.trainers.optimizers.parameter_groups import group_parameters
    from pairloom.trainers.ranks import rank, world_size
    from pairloom.trainers.task import Batch, ParameterGroup, StepEngine, StepResult, Task, TrainSample, View

__all__ = [
    "EVALUATIONS",
    "EXPORTERS",
    "SIGNALS",
    "SOURCES",
    "TASKS",
    "Batch",
    "CaptionSignal",
    "EvaluationRecipe",
    "ImageSignal",
    "MeasuredSignal",
    "Name",
    "ParameterGroup",
    "Piece",
    "Prepared",
    "Preprocess",
    "Registry",
    "Signal",
    "SignalWork",
    "SourceFile",
    "SourceRecipe",
    "SourceRow",
    "StepEngine",
    "StepResult",
    "StrictModel",
    "Task",
    "TaskRecipe",
    "TrainSample",
    "View",
    "group_parameters",
    "list_source_files",
    "load_preprocess",
    "rank",
    "world_size",
]
_HOMES = {
    **dict.fromkeys(("CaptionSignal", "ImageSignal"), "pairloom.pipelines.signals.row_signals"),
    **dict.fromkeys(
        ("Piece", "Prepared", "SourceFile", "SourceRow", "list_source_files"), "pairloom.pipelines.sources.source"
    ),
    **dict.fromkeys(
        ("Batch", "ParameterGroup", "StepEngine", "StepResult", "Task", "TrainSample", "View"), "pairloom.trainers.task"
    ),
    **dict.fromkeys(("rank", "world_size"), "pairloom.trainers.ranks"),
    "group_parameters": "pairloom.trainers.optimizers.parameter_groups",
}


def __getattr__(name: str) -> Any:
    """Import a base class at its first use: a signal needs no torch, and a task no Ray."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pairloom.plugins' has no attribute {name!r}")
