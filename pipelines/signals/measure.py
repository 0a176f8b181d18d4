"""Measure one signal over all raw shards: one table per shard, with the rows of the raw table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, StepResult, missing_tables, nothing
from pairloom.pipelines.signals.reuse import reuse_columns
from pairloom.schemas.data_set.manifest import ShardEntry, load_manifest
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import step_hash
from pairloom.schemas.recipes.signals import MeasuredSignal, Signal, SignalWork

STEP = "signals"


def comes_after_dedupe(recipe: CurateRecipe, signal: Signal) -> bool:
    """Whether a signal reads the tables of dedupe, directly or through another signal."""
    return signal.reads_dedupe() or any(comes_after_dedupe(recipe, other) for other in _needed(recipe, signal))


def in_order(recipe: CurateRecipe) -> list[Signal]:
    """The signals of a recipe, each after the signals that it needs."""

    def depth(signal: Signal) -> int:
        return 1 + max((depth(other) for other in _needed(recipe, signal)), default=0)

    return sorted(recipe.signals, key=depth)


def _needed(recipe: CurateRecipe, signal: Signal) -> list[Signal]:
    return [recipe.signal(name) for name in signal.needs()]


def signal_folder(recipe: CurateRecipe, signal: Signal, raw_folder: str, dedupe_folder: str | None) -> StepFolder:
    """The folder of the signal's columns. Raises InputError for a model that cannot be used."""
    return _folder_for(recipe, signal, load_manifest(raw_folder).hash(), dedupe_folder)


def _folder_for(recipe: CurateRecipe, signal: Signal, raw_hash: str, dedupe_folder: str | None) -> StepFolder:
    parents = [raw_hash]
    parents += [_folder_for(recipe, other, raw_hash, dedupe_folder).recipe_hash for other in _needed(recipe, signal)]
    if signal.reads_dedupe():
        if dedupe_folder is None:
            raise InputError(f"signals.{signal.name}: needs dedupe, which is not complete; run it first")
        parents.append(load_manifest(dedupe_folder).hash())
    result = step_hash(STEP, signal.version, signal.settings(), parents, signal.inputs())
    return StepFolder(recipe.root, STEP, signal.name, result, tuple(parents))


def measure_signal(
    recipe: CurateRecipe,
    signal: Signal,
    raw_folder: str,
    dedupe_folder: str | None,
    before_work: BeforeWork = nothing,
) -> str:
    """Measure one signal. Returns its folder. Existing shards are not measured again. Raises UserError."""
    target = signal_folder(recipe, signal, raw_folder, dedupe_folder)
    if not target.is_complete():
        signal.prepare()
    work = partial(_measure, recipe, signal, raw_folder, dedupe_folder, target)
    return target.run_once(before_work, work)


def _measure(
    recipe: CurateRecipe, signal: Signal, raw_folder: str, dedupe_folder: str | None, target: StepFolder
) -> StepResult:
    raw = load_manifest(raw_folder)
    missing = set(missing_tables(target.url, [shard.name for shard in raw.shards]))
    if signal.is_per_shard and not comes_after_dedupe(recipe, signal):
        missing -= set(
            reuse_columns(
                raw_folder, target, sorted(missing), lambda old: _folder_for(recipe, signal, old, dedupe_folder)
            )
        )
    todo = [shard for shard in raw.shards if shard.name in missing]
    needed = _measured(recipe, signal, raw_folder, dedupe_folder)
    num_done = len(raw.shards) - len(todo)
    details = signal.measure(SignalWork(raw_folder, target.url, todo, num_done, dedupe_folder, needed))
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_samples, num_bytes=0) for shard in raw.shards]
    return StepResult(entries, details=details)


def _measured(
    recipe: CurateRecipe, signal: Signal, raw_folder: str, dedupe_folder: str | None
) -> Mapping[str, MeasuredSignal]:
    return {
        other.name: MeasuredSignal(other, signal_folder(recipe, other, raw_folder, dedupe_folder).url)
        for other in _needed(recipe, signal)
    }
