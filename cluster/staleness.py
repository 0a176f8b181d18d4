"""Training data and runs whose raw data set has a newer generation: for the warnings of `train` and `recall`."""

from __future__ import annotations

from collections.abc import Sequence

from pairloom.schemas.data_set.generations import data_of_run, run_stale_lines, stale_lines
from pairloom.schemas.data_set.manifest import resolve
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage


def stale_data(recipe: TrainRecipe) -> list[str]:
    """One line for each curated data set of a recipe that is stale; the trainer reports missing ones."""
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
    """Lines for the runs of a root that are stale."""
    return [f"{run}: {line}" for run in find_runs(root, folders) for line in run_stale_lines(run)]


def data_of_runs(root: str, folders: Sequence[str]) -> set[str]:
    """Hashes of the manifests that the runs of a root were trained on."""
    return {data["manifest_hash"] for run in find_runs(root, folders) for data in data_of_run(run)}


def find_runs(root: str, folders: Sequence[str]) -> list[str]:
    """The runs below `folders`, `runs`, `<root>/runs` and `runs` beside the root."""
    beside = storage.join(root.rstrip("/").rpartition("/")[0] or ".", "runs")
    runs: dict[str, None] = {}
    for folder in (*folders, "runs", storage.join(root, "runs"), beside):
        for run in [folder, *storage.list_files(folder)]:
            if storage.exists(storage.join(run, "recipe.yaml")):
                runs[run.removeprefix("./")] = None
    return list(runs)
