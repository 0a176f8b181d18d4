"""What the author of a plug-in needs: base classes and registries. See the how-to pages of the documentation.

A package adds a plug-in by an entry point of the group "pairloom.signals", "pairloom.sources", "pairloom.tasks",
"pairloom.exporters" or "pairloom.evaluations"; the entry point's name is the `kind` in a recipe. Notebooks may call
`SIGNALS.register(kind, plugin)` instead.
"""

from __future__ import annotations

from pairloom.pipelines.signals.row_signals import CaptionSignal, ImageSignal
from pairloom.pipelines.sources.source import Piece, Prepared, SourceFile, SourceRow, list_source_files
from pairloom.registry import EVALUATIONS, EXPORTERS, SIGNALS, SOURCES, TASKS, Registry
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import MeasuredSignal, Name, Signal, SignalWork
from pairloom.schemas.recipes.source import SourceRecipe

__all__ = [
    "EVALUATIONS",
    "EXPORTERS",
    "SIGNALS",
    "SOURCES",
    "TASKS",
    "CaptionSignal",
    "ImageSignal",
    "MeasuredSignal",
    "Name",
    "Piece",
    "Prepared",
    "Registry",
    "Signal",
    "SignalWork",
    "SourceFile",
    "SourceRecipe",
    "SourceRow",
    "StrictModel",
    "list_source_files",
]
