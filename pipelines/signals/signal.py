"""Measure one signal over all raw shards: columns with the rows and order of the raw tables."""

from __future__ import annotations

from pipelines.signals import captions, classifier, clip, feature_head, quality
from pipelines.signals.clip_model import check_held_out, model_fingerprint
from pipelines.signals.reuse import reuse_columns
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas import storage
from schemas.curate_recipe import CurateRecipe
from schemas.errors import InputError
from schemas.manifest import ShardEntry, load_manifest
from schemas.recipe_io import step_hash
from schemas.signal_recipe import (
    CaptionSignals,
    ClassifierSignals,
    ClipSignals,
    HeadSignals,
    QualitySignals,
    SignalRecipe,
)

STEP = "signals"
_VERSIONS = {
    "captions": captions.VERSION,
    "clip": clip.VERSION,
    "quality": quality.VERSION,
    "image_classifier": classifier.VERSION,
    "feature_head": feature_head.VERSION,
}


def is_out_of_fold(recipe: CurateRecipe, signal: SignalRecipe) -> bool:
    """True for a signal whose models each score the fold they were not trained on (it needs dedupe's groups)."""
    if isinstance(signal, HeadSignals):
        signal = features_signal(recipe, signal)
    return isinstance(signal, ClipSignals) and signal.models is not None


def features_signal(recipe: CurateRecipe, head: HeadSignals) -> ClipSignals:
    """The signal whose features a head works on."""
    return next(signal for signal in recipe.signals if isinstance(signal, ClipSignals) and signal.name == head.features)


def signal_folder(recipe: CurateRecipe, signal: SignalRecipe, raw_folder: str, dedupe_folder: str | None) -> StepFolder:
    """Where the signal's columns lie. Raises InputError for a model that cannot be used."""
    return _folder_for(recipe, signal, load_manifest(raw_folder).hash(), dedupe_folder)


def _folder_for(recipe: CurateRecipe, signal: SignalRecipe, raw_hash: str, dedupe_folder: str | None) -> StepFolder:
    parents = [raw_hash]
    inputs: dict[str, str] = {}
    settings: dict[str, object] = {"kind": signal.kind}
    if isinstance(signal, ClipSignals):
        inputs = {f"model {index}": model_fingerprint(model) for index, model in enumerate(models_of(signal))}
        if signal.models is not None:
            parents.append(load_manifest(_groups(signal, dedupe_folder)).hash())
    elif isinstance(signal, ClassifierSignals):
        inputs = {"model": model_fingerprint(signal.model)}
        settings["label"] = signal.label
    elif isinstance(signal, HeadSignals):
        if not storage.exists(signal.head):
            raise InputError(f"signals.{signal.name}.head: {signal.head}: no such file")
        inputs = {"head": storage.sha256_of(signal.head)}
        parents.append(_folder_for(recipe, features_signal(recipe, signal), raw_hash, dedupe_folder).recipe_hash)
    result = step_hash(STEP, _VERSIONS[signal.kind], settings, parents, inputs)
    return StepFolder(recipe.root, STEP, signal.name, result, tuple(parents))


def _groups(signal: ClipSignals, dedupe_folder: str | None) -> str:
    if dedupe_folder is None:
        raise InputError(f"signals.{signal.name}: out-of-fold scores need the dedupe step")
    return dedupe_folder


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
    names = missing_tables(target.url, [shard.name for shard in raw.shards])
    if not is_out_of_fold(recipe, signal):  # those depend on dedupe's groups, which all shards decide together
        reused = reuse_columns(raw_folder, target, names, lambda old: _folder_for(recipe, signal, old, dedupe_folder))
        names = [name for name in names if name not in set(reused)]
    missing = set(names)
    todo = [shard for shard in raw.shards if shard.name in missing]
    num_done = len(raw.shards) - len(todo)
    name, folder = signal.name, target.url
    match signal:
        case CaptionSignals():
            captions.measure_captions(name, raw_folder, folder, [shard.name for shard in todo], num_done)
        case QualitySignals():
            quality.measure_quality(name, raw_folder, folder, todo, num_done)
        case ClipSignals():
            groups = dedupe_folder if signal.models is not None else None
            job = clip.ClipJob(name, raw_folder, groups, folder, models_of(signal), signal.batch_size)
            clip.score_shards(job, todo, num_done)
        case ClassifierSignals():
            classified = classifier.ClassifierJob(
                name, raw_folder, folder, signal.model, signal.label, signal.batch_size
            )
            classifier.classify_shards(classified, todo, num_done)
        case HeadSignals():
            features = signal_folder(recipe, features_signal(recipe, signal), raw_folder, dedupe_folder).url
            headed = feature_head.HeadJob(name, raw_folder, features, folder, signal.head)
            feature_head.score_shards(headed, todo, num_done)
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_samples, num_bytes=0) for shard in raw.shards]
    target.finish(entries)
    return target.url
