"""Measure one signal over all raw shards: columns with the rows and order of the raw tables."""

from __future__ import annotations

from dataclasses import dataclass

from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from pairloom.pipelines.images.image_sets import fingerprint_of
from pairloom.pipelines.signals import (
    caption_duplicates,
    captions,
    classifier,
    clip,
    clusters,
    feature_head,
    phash256,
    quality,
    word_list,
)
from pairloom.pipelines.signals.models.clip import check_held_out, model_fingerprint
from pairloom.pipelines.signals.reuse import reuse_columns
from pairloom.schemas.data_set.manifest import ShardEntry, load_manifest
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import step_hash
from pairloom.schemas.recipes.signals import (
    CaptionDuplicateSignals,
    CaptionSignals,
    ClassifierSignals,
    ClipSignals,
    ClusterSignals,
    HeadSignals,
    PhashSignals,
    QualitySignals,
    SignalRecipe,
    WordListSignals,
)
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

STEP = "signals"
_VERSIONS = {
    "captions": captions.VERSION,
    "clip": clip.VERSION,
    "quality": quality.VERSION,
    "caption_duplicates": caption_duplicates.VERSION,
    "phash256": phash256.VERSION,
    "image_classifier": classifier.VERSION,
    "feature_head": feature_head.VERSION,
    "clusters": clusters.VERSION,
    "word_list": word_list.VERSION,
}


def comes_after_dedupe(recipe: CurateRecipe, signal: SignalRecipe) -> bool:
    """True for a signal that looks at what dedupe says: folds are cut by its groups, clusters are of what it keeps."""
    return isinstance(signal, ClusterSignals) or is_out_of_fold(recipe, signal)


def is_out_of_fold(recipe: CurateRecipe, signal: SignalRecipe) -> bool:
    """True for a signal whose models each score the fold they were not trained on (it needs dedupe's groups)."""
    if isinstance(signal, HeadSignals):
        signal = features_signal(recipe, signal)
    return isinstance(signal, ClipSignals) and signal.models is not None


def features_signal(recipe: CurateRecipe, user: HeadSignals | ClusterSignals) -> ClipSignals:
    """The signal whose features a head or clusters work on."""
    return next(signal for signal in recipe.signals if isinstance(signal, ClipSignals) and signal.name == user.features)


def signal_folder(recipe: CurateRecipe, signal: SignalRecipe, raw_folder: str, dedupe_folder: str | None) -> StepFolder:
    """Where the signal's columns lie. Raises InputError for a model that cannot be used."""
    return _folder_for(recipe, signal, load_manifest(raw_folder).hash(), dedupe_folder)


def _folder_for(recipe: CurateRecipe, signal: SignalRecipe, raw_hash: str, dedupe_folder: str | None) -> StepFolder:
    parents = [raw_hash]
    inputs: dict[str, str] = {}
    settings: dict[str, object] = {"kind": signal.kind}
    match signal:
        case ClipSignals():
            inputs = {f"model {index}": model_fingerprint(model) for index, model in enumerate(models_of(signal))}
        case CaptionDuplicateSignals():
            settings["threshold"] = signal.threshold
        case ClassifierSignals():
            inputs = {"model": classifier.classifier_fingerprint(signal.model)}
            settings["label"] = signal.label
        case HeadSignals():
            inputs = {"head": _content(signal.head, f"signals.{signal.name}.head")}
        case ClusterSignals():
            settings["num_clusters"] = signal.num_clusters
            inputs = _cluster_inputs(signal)
        case WordListSignals():
            inputs = word_list.fingerprints(signal)
    if isinstance(signal, HeadSignals | ClusterSignals):
        parents.append(_folder_for(recipe, features_signal(recipe, signal), raw_hash, dedupe_folder).recipe_hash)
    if isinstance(signal, ClusterSignals) or (isinstance(signal, ClipSignals) and signal.models is not None):
        parents.append(load_manifest(_after_dedupe(signal, dedupe_folder)).hash())
    result = step_hash(STEP, _VERSIONS[signal.kind], settings, parents, inputs)
    return StepFolder(recipe.root, STEP, signal.name, result, tuple(parents))


def _content(url: str, where: str) -> str:
    if not storage.exists(url):
        raise InputError(f"{where}: {url}: no such file")
    return sha256_of(url)


def _cluster_inputs(signal: ClusterSignals) -> dict[str, str]:
    inputs = {}
    if signal.centroids is not None:
        inputs["centroids"] = _content(signal.centroids, f"signals.{signal.name}.centroids")
    if signal.target is not None:
        inputs["target"] = fingerprint_of(signal.target)
    return inputs


def _after_dedupe(signal: SignalRecipe, dedupe_folder: str | None) -> str:
    if dedupe_folder is None:
        raise InputError(f"signals.{signal.name}: is measured after dedupe, which is not there yet")
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
    if not (comes_after_dedupe(recipe, signal) or isinstance(signal, CaptionDuplicateSignals)):  # all shards together
        reused = reuse_columns(raw_folder, target, names, lambda old: _folder_for(recipe, signal, old, dedupe_folder))
        names = [name for name in names if name not in set(reused)]
    missing = set(names)
    todo = [shard for shard in raw.shards if shard.name in missing]
    num_done = len(raw.shards) - len(todo)
    details = _measure(recipe, signal, Work(raw_folder, dedupe_folder, target.url, todo, num_done))
    entries = [ShardEntry(shard.name, shard.num_rows, shard.num_samples, num_bytes=0) for shard in raw.shards]
    target.finish(entries, details=details)
    return target.url


@dataclass(frozen=True)
class Work:
    """What is left to measure of one signal."""

    raw_folder: str
    dedupe_folder: str | None
    folder: str
    shards: list[ShardEntry]
    num_done: int  # shards, earlier


def _measure(recipe: CurateRecipe, signal: SignalRecipe, work: Work) -> dict[str, object]:
    """Write the columns of the shards that are left; returns details for the manifest."""
    name, raw_folder, folder = signal.name, work.raw_folder, work.folder
    match signal:
        case CaptionSignals():
            captions.measure_captions(name, raw_folder, folder, [shard.name for shard in work.shards], work.num_done)
        case CaptionDuplicateSignals():
            caption_duplicates.measure_caption_duplicates(name, signal.threshold, raw_folder, folder)
        case WordListSignals():
            word_list.measure_words(signal, raw_folder, folder, [shard.name for shard in work.shards], work.num_done)
        case QualitySignals():
            quality.measure_quality(name, raw_folder, folder, work.shards, work.num_done)
        case PhashSignals():
            phash256.measure_hashes(name, raw_folder, folder, work.shards, work.num_done)
        case ClipSignals():
            groups = work.dedupe_folder if signal.models is not None else None
            job = clip.ClipJob(name, raw_folder, groups, folder, models_of(signal), signal.batch_size)
            clip.score_shards(job, work.shards, work.num_done)
        case ClassifierSignals():
            classified = classifier.ClassifierJob(
                name, raw_folder, folder, signal.model, signal.label, signal.batch_size
            )
            classifier.classify_shards(classified, work.shards, work.num_done)
        case HeadSignals():
            features = signal_folder(recipe, features_signal(recipe, signal), raw_folder, work.dedupe_folder).url
            headed = feature_head.HeadJob(name, raw_folder, features, folder, signal.head)
            feature_head.score_shards(headed, work.shards, work.num_done)
        case ClusterSignals():
            clip_signal = features_signal(recipe, signal)
            features = signal_folder(recipe, clip_signal, raw_folder, work.dedupe_folder).url
            dedupe_folder = _after_dedupe(signal, work.dedupe_folder)
            clustered = clusters.ClusterJob(name, raw_folder, dedupe_folder, features, folder, str(clip_signal.model))
            return {"num_clusters": clusters.cluster_shards(clustered, signal, work.shards, work.num_done)}
    return {}
