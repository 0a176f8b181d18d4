"""Ingest: a source of pairs -> raw shards. A raw shard is a tar of images and a table with one row per input row.

    source files -> segment (frozen list) -> uids of all shards -> duplicate rows -> shards -> manifest

All parts are resumable: a segment, a shard's uids and a shard are done when their file exists. A second run of a
finished ingest writes nothing; files added to the source become a new segment of the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from pairloom.pipelines.engine.run_shards import Counted, run_counted_shards, run_shards
from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from pairloom.pipelines.fetch.ray_host_limits import shared_host_limits
from pairloom.pipelines.ingest.shard import ShardJob, make_shard, write_uids
from pairloom.pipelines.optout.apply import apply_tombstones
from pairloom.pipelines.raw.generation import collect_results, finish_rewrite, save_generation, shard_names_of
from pairloom.pipelines.raw.row_uids import find_duplicate_rows, uids_url
from pairloom.pipelines.raw.segments import (
    Segment,
    cut_pieces,
    find_new_files,
    load_segments,
    release_files,
    save_segment,
)
from pairloom.pipelines.raw.table import ShardResult, drop_duplicate_rows, replace_table
from pairloom.pipelines.sources.open_source import open_source
from pairloom.pipelines.sources.source import Piece, Prepared, Source, SourceFile
from pairloom.schemas.data_set.generations import read_head
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.data_set.tables import SAMPLE, STATUS_SUCCESS, read_table
from pairloom.schemas.data_set.tombstones import tombstone_names
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import settings_of, step_hash
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage

VERSION = 2  # raise it when the same source and settings give other shards
CPUS_PER_FETCHED_SHARD = 0.5  # two shards per core: one decodes while the other waits for its last URLs


@dataclass(frozen=True)
class PrepareJob:
    """One source file to check and count."""

    source: SourceRecipe
    file: SourceFile
    staging_folder: str


def ingest(recipe: CurateRecipe, before_work: BeforeWork = nothing) -> str:
    """Run the step. Returns the raw folder. `before_work` is called once before Ray is needed.

    Raises InputError (a file missing, changed or unreadable), RecipeError, ShardError, StorageError.
    """
    _check_kept_columns(recipe.source)
    step = raw_folder(recipe)
    source = open_source(recipe.source)
    finish_rewrite(step.url)
    listed = source.list_files()
    segments = release_files(step.url, load_segments(step.url), listed, partial(_can_release, recipe, source, step.url))
    new_files = find_new_files(segments, listed)
    if not new_files and _covers(step.url, segments):
        apply_tombstones(step.url)
        step.point_latest()
        return step.url
    before_work()
    if new_files:
        segments.append(_freeze(recipe, source, step.url, segments, new_files))
    jobs = [job for segment in segments for job in _jobs(recipe, source, step.url, segment)]
    if not jobs:
        raise InputError(f"source.path: {recipe.source.path}: none of its files was ingested; check the files")
    results = _make_adopted(step.url, jobs) if source.is_adopted else _make_shards(step.url, jobs)
    _finish(step, segments, results)
    return step.url


def raw_folder(recipe: CurateRecipe) -> StepFolder:
    """The raw folder of a recipe. Its hash covers how rows become samples, not the list of files."""
    settings = {
        "source": settings_of(recipe.source),
        "ingest": settings_of(recipe.ingest),
    }
    return StepFolder(recipe.root, "raw", recipe.source.name, step_hash("ingest", VERSION, settings), parents=())


def _check_kept_columns(recipe: SourceRecipe) -> None:
    for name in recipe.keep_columns:
        if name in SAMPLE.names:
            raise RecipeError(f"source.keep_columns: {name} is a column of every raw table; remove it or rename it")
        if recipe.keep_columns.count(name) > 1:
            raise RecipeError(f"source.keep_columns: {name} is listed twice; remove one")


def _covers(folder: str, segments: Sequence[Segment]) -> bool:
    """Whether the manifest exists and contains every segment."""
    head = read_head(folder)  # without shards.parquet: an incomplete manifest is written again
    return head is not None and head["details"]["num_segments"] == len(segments)


def _staging(folder: str) -> str:
    """The folder of staged tables; removed when all shards are done."""
    return storage.join(folder, "staged")


def _freeze(
    recipe: CurateRecipe, source: Source, folder: str, segments: Sequence[Segment], files: Sequence[SourceFile]
) -> Segment:
    """Check and count new files and freeze them as a segment."""
    kept_types = segments[0].kept_types if segments else None
    first_shard = segments[-1].first_shard + segments[-1].num_shards if segments else 0
    counted = list(files)
    if source.is_adopted:
        num_shards = len(files)
    else:
        counted, kept_types = _count_rows(recipe.source, folder, files, kept_types)
        num_rows = sum(file.num_rows or 0 for file in counted)
        if num_rows == 0 and not segments:
            raise InputError(f"source.path: {recipe.source.path}: no rows in {len(files)} files; check the files")
        num_shards = -(-num_rows // recipe.ingest.samples_per_shard)
    segment = Segment(len(segments), first_shard, num_shards, tuple(counted), kept_types or {})
    save_segment(folder, segment)
    return segment


def _count_rows(
    recipe: SourceRecipe, folder: str, files: Sequence[SourceFile], kept_types: Mapping[str, str] | None
) -> tuple[list[SourceFile], Mapping[str, str] | None]:
    """Files with their row counts, and the types of keep_columns, which must be the same in all files."""
    jobs = [PrepareJob(recipe, file, _staging(folder)) for file in files if file.num_rows is None]
    prepared = dict(zip((job.file.path for job in jobs), run_shards("tables", _prepare, jobs), strict=True))
    counted = []
    for file in files:
        found = prepared.get(file.path)
        if found is None:
            counted.append(file)
            continue
        kept_types = dict(found.kept_types) if kept_types is None else kept_types
        for name, kind in found.kept_types.items():
            if kind != kept_types.get(name):
                raise InputError(
                    f"{file.path}: column {name} is {kind}, in other files {kept_types.get(name)}; convert it"
                )
        counted.append(replace(file, num_rows=found.num_rows))
    return counted, kept_types


def _prepare(job: PrepareJob) -> Prepared:
    return open_source(job.source).prepare(job.file, job.staging_folder)


def _jobs(recipe: CurateRecipe, source: Source, folder: str, segment: Segment) -> list[ShardJob]:
    """The shards of one segment that have rows."""
    tombstones = tombstone_names(recipe.root)
    return [
        ShardJob(recipe.source, recipe.ingest, folder, segment.first_shard + index, of_shard, None, tombstones)
        for index, of_shard in enumerate(_pieces(recipe, source, folder, segment))
        if of_shard
    ]


def _pieces(recipe: CurateRecipe, source: Source, folder: str, segment: Segment) -> list[tuple[Piece, ...]]:
    """The pieces of each shard of a segment."""
    if source.is_adopted:
        return [() if file.is_released else (Piece(file.path, file.path),) for file in segment.files]
    readable = [source.readable(file, _staging(folder)) for file in segment.files]
    return list(cut_pieces(segment.files, readable, recipe.ingest.samples_per_shard))


def _can_release(recipe: CurateRecipe, source: Source, folder: str, segment: Segment, file: SourceFile) -> bool:
    """Whether none of the file's rows was ingested. Then removes the uids of its shards, which lose its rows."""
    names = [
        shard_name(segment.first_shard + index)
        for index, pieces in enumerate(_pieces(recipe, source, folder, segment))
        if any(piece.origin == file.path for piece in pieces)
    ]
    if any(storage.exists(table_url(folder, name)) for name in names):
        return False
    for name in names:
        storage.remove(uids_url(folder, name))
    return True


def _make_shards(folder: str, jobs: Sequence[ShardJob]) -> list[ShardResult]:
    """Write the uids of all rows, then make the missing shards."""
    names = [job.name for job in jobs]
    pending = set(missing_tables(folder, names))
    missing_uids = _missing_uids(folder, names)
    _stage_again(folder, [job for job in jobs if job.name in pending | missing_uids])
    run_shards("uids", write_uids, [job for job in jobs if job.name in missing_uids])
    repeated = find_duplicate_rows(folder, names) if pending else {}
    todo = [replace(job, duplicate_rows=repeated.get(job.name)) for job in jobs if job.name in pending]
    made = _run_counted(folder, jobs, todo)
    return _all_results(folder, names, made)


def _run_counted(folder: str, jobs: Sequence[ShardJob], todo: Sequence[ShardJob]) -> list[ShardResult]:
    """Make shards and show the counts of their rows."""
    lengths = [piece.num_rows for job in todo for piece in job.pieces]
    num_rows = None if None in lengths else sum(length or 0 for length in lengths)
    metrics_url = storage.join(folder, "metrics.jsonl")
    with _host_limits(todo):
        num_cpus = 1.0 if open_source(jobs[0].source).has_images else CPUS_PER_FETCHED_SHARD
        counted = Counted(len(jobs) - len(todo), num_rows, metrics_url, num_cpus)
        return run_counted_shards("ingest", make_shard, todo, counted)


def _host_limits(jobs: Sequence[ShardJob]) -> AbstractContextManager[None]:
    """Limits per host over all workers, if the source needs fetching."""
    is_fetching = bool(jobs) and not open_source(jobs[0].source).has_images
    return shared_host_limits(jobs[0].ingest.fetch.per_host) if is_fetching else nullcontext()


def _stage_again(folder: str, jobs: Sequence[ShardJob]) -> None:
    """Stage source files again that missing shards of a finished segment need."""
    staged = {piece.path: (piece.origin, job.source) for job in jobs for piece in job.pieces}
    lost = [
        PrepareJob(source, _frozen_file(folder, origin), _staging(folder))
        for path, (origin, source) in staged.items()
        if path != origin and not storage.exists(path)
    ]
    for job, found in zip(lost, run_shards("tables", _prepare, lost), strict=True):
        if found.num_rows != job.file.num_rows:
            raise InputError(
                f"{job.file.path}: has {found.num_rows} rows, {job.file.num_rows} when the interrupted ingest began; "
                "choose another source.name"
            )


def _frozen_file(folder: str, path: str) -> SourceFile:
    files = (file for segment in load_segments(folder) for file in segment.files if not file.is_released)
    return next(file for file in files if file.path == path)


def _make_adopted(folder: str, jobs: Sequence[ShardJob]) -> list[ShardResult]:
    """Write tables of adopted tars, then drop duplicate rows in the tables; the tars do not change."""
    names = [job.name for job in jobs]
    pending = set(missing_tables(folder, names))
    todo = [job for job in jobs if job.name in pending]
    made = _run_counted(folder, jobs, todo)
    results = {result.entry.name: result for result in _all_results(folder, names, made)}
    for name, rows in find_duplicate_rows(folder, names).items():
        table = read_table(table_url(folder, name))
        dropped = drop_duplicate_rows(table, rows)
        if not dropped.equals(table):
            num_samples = dropped["status"].to_pylist().count(STATUS_SUCCESS)
            results[name] = replace_table(folder, dropped, replace(results[name].entry, num_samples=num_samples))
    return [results[name] for name in names]


def _missing_uids(folder: str, names: Sequence[str]) -> set[str]:
    """Shards without a file of uids; lists folders of 1,000 shards."""
    there: set[str] = set()
    for part in sorted({name.partition("/")[0] for name in names}):
        there.update(storage.list_files(storage.join(folder, "uids", part)))
    return {name for name in names if uids_url(folder, name) not in there}


def _all_results(folder: str, names: Sequence[str], made: Sequence[ShardResult]) -> list[ShardResult]:
    """Results of all shards: of this run, and from the tables of earlier runs."""
    results = {result.entry.name: result for result in made}
    before = [name for name in names if name not in results]
    results.update(zip(before, collect_results(folder, before), strict=True))
    return [results[name] for name in names]


def _finish(step: StepFolder, segments: Sequence[Segment], results: Sequence[ShardResult]) -> None:
    """Write the manifest of all segments and remove staged tables."""
    head = {"name": step.name, "step": step.step, "recipe_hash": step.recipe_hash, "parents": step.parents,
            "details": {"num_segments": len(segments)}}  # fmt: skip
    before = shard_names_of(step.url) if step.is_complete() else []
    changed = sorted({result.entry.name for result in results} - set(before))
    save_generation(step.url, head, results, changed)
    apply_tombstones(step.url)
    step.point_latest()
    storage.remove(_staging(step.url))
