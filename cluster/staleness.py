"""Training data and runs whose raw data set has a newer generation: for the warnings of `train` and `recall`."""

from __future__ import annotations

from collections.abc import Sequence

from schemas import storage
from schemas.errors import InputError
from schemas.generations import run_stale_lines, stale_lines
from schemas.manifest import resolve
from schemas.train_recipe import TrainRecipe


def stale_data(recipe: TrainRecipe) -> list[str]:
    """One line for each curated data set of a recipe that is stale; what is not there is the trainer's to report."""
    lines = []
    for source in recipe.data.train:
        path = source.images if source.path.endswith((".json", ".jsonl")) else source.path
        try:
            folder = resolve(path) if path is not None else None
        except InputError:
            continue
        if folder is not None:
            lines += [f"{path}: {line}" for line in stale_lines(folder)]
    return lines


def stale_runs(root: str, folders: Sequence[str]) -> list[str]:
    """Lines for the runs below `folders`, `runs`, `<root>/runs` and `runs` beside the root."""
    beside = storage.join(root.rstrip("/").rpartition("/")[0] or ".", "runs")
    runs: dict[str, None] = {}
    for folder in (*folders, "runs", storage.join(root, "runs"), beside):
        for run in [folder, *storage.list_files(folder)]:
            if storage.exists(storage.join(run, "recipe.yaml")):
                runs[run.removeprefix("./")] = None
    return [f"{run}: {line}" for run in runs for line in run_stale_lines(run)]
