"""The functions of the public API. Import them from `pairloom`; the command line is a thin layer over them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import yaml

from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import apply_override, load_settings, parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage

logger = logging.getLogger("pairloom")
Recipe = CurateRecipe | TrainRecipe
RecipeSource = Recipe | str | Path | Mapping[str, Any]
Overrides = Sequence[str] | Mapping[str, Any]


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Recipe:
    """Read a recipe: a YAML file or URL, the name of a built-in recipe, or settings in memory.

    `overrides` are "dotted.path=value" strings as on the command line, or a mapping of dotted paths to values. A recipe
    with a `task` is a TrainRecipe, any other one a CurateRecipe. Raises RecipeError, in one line that names the field.
    """
    where, settings = _settings_of(source)
    pairs = overrides.items() if isinstance(overrides, Mapping) else None
    for override in overrides if pairs is None else (f"{path}={yaml.safe_dump(value)}" for path, value in pairs):
        apply_override(settings, override)
    model: type[CurateRecipe] | type[TrainRecipe] = TrainRecipe if "task" in settings else CurateRecipe
    return parse_recipe(settings, model, where)


def _settings_of(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    from pairloom.cluster.built_in_recipes import built_in_recipes

    if isinstance(source, Mapping):
        return "recipe", _copied(source)
    path = str(source)
    built_in = built_in_recipes()
    if path in built_in and not storage.exists(path):
        path = str(built_in[path].path)
    return path, load_settings(path)


def _copied(value: Any) -> Any:
    """Plain containers that overrides may change."""
    if isinstance(value, Mapping):
        return {str(name): _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list | tuple) else value


@overload
def _checked(recipe: Any, model: type[CurateRecipe], overrides: Overrides) -> CurateRecipe: ...
@overload
def _checked(recipe: Any, model: type[TrainRecipe], overrides: Overrides) -> TrainRecipe: ...
def _checked(recipe: Any, model: type[Any], overrides: Overrides) -> Any:
    """A recipe of one kind, from whatever `load_recipe` takes or from a recipe."""
    if isinstance(recipe, CurateRecipe | TrainRecipe):
        recipe = recipe.model_dump(mode="json") if overrides else recipe
    loaded = load_recipe(recipe, overrides) if not isinstance(recipe, CurateRecipe | TrainRecipe) else recipe
    if not isinstance(loaded, model):
        given, wanted = ("train", "curate") if model is CurateRecipe else ("curate", "train")
        raise RecipeError(f"this is a {given} recipe; give a {wanted} recipe")
    return loaded


def curate(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    only: str | None = None,
    retry: Literal["transient"] | None = None,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Turn a source of image-text pairs into a curated data set; complete steps are not done again.

    `only` runs one step ("ingest", "signals", "dedupe", "balance", "select", "reshard"). `retry="transient"` fetches
    rows again that failed for a passing reason. Ray starts on this machine unless it runs already or `ray_address`
    names a cluster. Returns `steps` (name, folder, num_rows, num_kept, drop_counts of each), `difference` to the last
    selection, and `retried`. Raises UserError, ShardError, StorageError.
    """
    from pairloom.cluster.ray_session import start_ray
    from pairloom.pipelines.curate import curate as run

    settings = _checked(recipe, CurateRecipe, overrides)
    return run(settings, start_ray=lambda: start_ray(ray_address), only=only, retry=retry is not None)


def train(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    num_processes: int | None = None,
    ray_address: str | None = None,
    threads: int | None = None,
) -> str:
    """Train a model to its end, from the newest checkpoint where there is one; returns the run's folder.

    One rank per GPU, or `num_processes` ranks; with `ray_address` on a Ray cluster. `threads`: CPU threads per rank.
    The export lies in `<run.dir>/export`. Raises UserError, PairloomError, StorageError.
    """
    from pairloom.cluster.launch_trainer import launch_trainer
    from pairloom.cluster.staleness import stale_data

    settings = _checked(recipe, TrainRecipe, overrides)
    for line in stale_data(settings):
        logger.warning("pairloom: warning: %s", line)
    launch_trainer(settings, num_processes=num_processes, ray_address=ray_address, threads=threads)
    return settings.run.dir


def evaluate(model: str, kind: str, data: str, **settings: Any) -> dict[str, Any]:
    """Measure a model folder: `kind` is "zero-shot", "linear-probe", "retrieval", "vqa" or a plug-in's.

    `settings` are the further fields of a recipe's `evaluate` entry; vqa also takes `image_mode` ("real", "none",
    "wrong"). Returns the figures by name. Raises InputError, RecipeError.
    """
    from pairloom.trainers.evaluate.run import evaluate as run

    return run(model, kind, data, **settings)


def export(run_dir: str, out: str, *, format: str = "hf", step: int | None = None, averaged: bool = False) -> str:
    """Export a checkpoint (the newest, or of `step`) to a folder; returns it.

    `format` is "hf", "open-clip", "onnx" or a plug-in's. `averaged` takes the moving average of the weights. The
    folder holds the model, README.md, receipt.json and provenance.json. Raises InputError.
    """
    from pairloom.registry import EXPORTERS

    folder: str = EXPORTERS.get(format)(run_dir, out, step, averaged)
    return folder


def recall(
    root: str,
    *,
    uids: Iterable[str] = (),
    urls: Iterable[str] = (),
    domains: Iterable[str] = (),
    same_images: bool = False,
    runs: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Apply opt-out requests of one kind to a root, now and in every later ingest.

    Returns counts; `stale` lists the data sets and runs that must be made again.
    `same_images` also recalls the same image bytes under other URLs; `runs` are more folders with training runs.
    Raises InputError unless exactly one of `uids`, `urls` and `domains` is given.
    """
    given = {name: list(values) for name, values in (("uids", uids), ("urls", urls), ("domains", domains))}
    named = [kind for kind, values in given.items() if values]
    if len(named) != 1:
        raise InputError("name one of uids, urls and domains")
    return apply_request(root, OptOutRequest(named[0], given[named[0]], named[0]), same_images, runs, dry_run)


@dataclass(frozen=True)
class OptOutRequest:
    """One request: values of one kind, and where they come from, for messages."""

    kind: str  # uids, urls or domains
    values: Sequence[str]
    where: str


def apply_request(
    root: str, request: OptOutRequest, same_images: bool, runs: Sequence[str], dry_run: bool
) -> dict[str, Any]:
    """The work of `recall`, for requests from Python and from files."""
    from pairloom.cluster.staleness import stale_runs
    from pairloom.pipelines.optout.recall import recall as run
    from pairloom.pipelines.optout.rules import parse_request

    result = run(root, parse_request(request.kind, request.values, request.where), same_images, dry_run)
    return {**result, "stale": [*result["stale"], *stale_runs(root, runs)]}


def gc(
    root: str, *, keep: int = 1, min_age_hours: float = 24.0, runs: Sequence[str] = (), dry_run: bool = False
) -> dict[str, Any]:
    """Remove results below a root that nothing points to. Raises InputError.

    The `keep` newest results of each name stay, and names whose newest result is younger than `min_age_hours`.
    """
    from pairloom.cluster.staleness import data_of_runs
    from pairloom.pipelines.inspect.gc import collect_garbage

    return collect_garbage(root, keep, min_age_hours, data_of_runs(root, runs), dry_run)


def inspect(path: str) -> dict[str, Any]:
    """Counts, sizes, drop reasons and samples of a root or data set; progress of a run; facts of a model."""
    from pairloom.cluster.inspect_path import inspect_path

    return inspect_path(path)


def doctor(recipe: str | None = None) -> dict[str, Any]:
    """Versions, devices, disk and a recipe's paths; `problems` lists what would stop a run."""
    from pairloom.cluster.preflight import preflight

    return preflight(recipe)
