"""Measure one signal over all raw shards: columns with the rows and order of the raw tables."""

from __future__ import annotations

from pipelines.signals import captions, clip
from pipelines.signals.clip_model import check_held_out, model_fingerprint
from pipelines.signals.reuse import reuse_columns
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas.curate_recipe import ClipSignals, CurateRecipe, SignalRecipe
from schemas.errors import InputError
from schemas.manifest import ShardEntry, load_manifest
from schemas.recipe_io import step_hash

STEP = "signals"


def is_out_of_fold(signal: SignalRecipe) -> bool:
    """True for a signal whose models each score the fold they were not trained on (it needs dedupe's groups)."""
    return isinstance(signal, ClipSignals) and signal.models is not None


def signal_folder(recipe: CurateRecipe, signal: SignalRecipe, raw_folder: str, dedupe_folder: str | None) -> StepFolder:
    """Where the signal's columns lie. Raises InputError for a model that cannot be used."""
    return _folder_for(recipe, signal, load_manifest(raw_folder).hash(), dedupe_folder)


def _folder_for(recipe: CurateRecipe, signal: SignalRecipe, raw_hash: str, dedupe_folder: str | None) -> StepFolder:
    parents = [raw_hash]
    inputs = {}
    version = captions.VERSION
    if isinstance(signal, ClipSignals):
        version = clip.VERSION
        inputs = {f"model {index}": model_fingerprint(model) for index, model in enumerate(models_of(signal))}
    if is_out_of_fold(signal):
        if dedupe_folder is None:
            raise InputError(f"signals.{signal.name}: out-of-fold scores need the dedupe step")
        parents.append(load_manifest(dedupe_folder).hash())
    result = step_hash(STEP, version, {"kind": signal.kind}, parents, inputs)
    return StepFolder(recipe.root, STEP, signal.name, result, tuple(parents))


def models_of(signal: ClipSignals) -> tuple[str, ...]:
    """The model folders, one a fold, or the only one."""
    return tuple(signal.models) if signal.models is not None else (str(signal.model),)


def measure_signal(
    recipe: CurateRecipe,
    signal: SignalRecipe,
    raw_folder: str,
    dedupe_folder: str | None,
    before_work: BeforeWork = nothing,
) -> str:
    """Measure one signal; returns its folder. Shards that are there already are not measured again."""
    target = signal_folder(recipe, signal, raw_folder, dedupe_folder)
    if target.is_complete():
        target.point_latest()
        return target.url
    if isinstance(signal, ClipSignals) and signal.models is not None:
        check_held_out(signal.models)
    before_work()
    raw = load_manifest(raw_folder)
    todo = missing_tables(target.url, [shard.name for shard in raw.shards])
    if not is_out_of_fold(signal):  # those depend on dedupe's groups, which all shards decide together
        reused = reuse_columns(raw_folder, target, todo, lambda old: _folder_for(recipe, signal, old, dedupe_folder))
        todo = [name for name in todo if name not in set(reused)]
    num_done = len(raw.shards) - len(todo)
    if isinstance(signal, ClipSignals):
        groups = dedupe_folder if signal.models is not None else None
        job = clip.ClipJob(signal.name, raw_folder, groups, target.url, models_of(signal), signal.batch_size)
        clip.score_shards(job, [shard for shard in raw.shards if shard.name in set(todo)], num_done)
    else:
        captions.measure_captions(signal.name, raw_folder, target.url, todo, num_done)
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_samples, num_bytes=0) for shard in raw.shards]
    target.finish(entries)
    return target.url
