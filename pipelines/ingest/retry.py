"""`--retry transient`: fetch the rows again whose fetch failed for a transient reason.

The raw table has all that a row needs, so that the source is not read again. A shard with a new image is written as if
the first attempt had succeeded; other shards do not change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.step_folder import BeforeWork, missing_tables, nothing
from pairloom.pipelines.fetch.fetch_shard import fetch_rows
from pairloom.pipelines.fetch.ray_host_limits import shared_host_limits
from pairloom.pipelines.images.boxes import Boxes
from pairloom.pipelines.images.decode_queue import STORE_IMAGE, ImageWorkers
from pairloom.pipelines.images.decoder_process import SpooledImage, image_decoder
from pairloom.pipelines.ingest.shard import Outcomes
from pairloom.pipelines.ingest.shared_urls import SharedUrls
from pairloom.pipelines.optout.apply import with_offsets
from pairloom.pipelines.optout.rules import blank_rows, is_recalled, refusal, rules_of
from pairloom.pipelines.raw.generation import AddSample, Rewrite, collect_results, finish_rewrite, rewrite_tar
from pairloom.pipelines.raw.table import PlacedImage, dropped_values, read_result, replace_table, stored_values
from pairloom.pipelines.raw.tar import add_sample, work_folder
from pairloom.pipelines.sources.source import SourceRow, boxes_or_error
from pairloom.schemas.data_set.generations import read_head
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.data_set.shard import ShardWriter, make_key
from pairloom.schemas.data_set.tables import SAMPLE, read_table
from pairloom.schemas.data_set.tombstones import tombstone_names
from pairloom.schemas.drop_reason import TRANSIENT
from pairloom.schemas.errors import SampleError, StorageError
from pairloom.schemas.recipes.curate import CurateRecipe, IngestRecipe
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class RetryJob:
    """One shard with rows to fetch again."""

    rewrite: Rewrite
    ingest: IngestRecipe
    source: SourceRecipe  # for the boxes to blur
    name: str
    tombstones: tuple[str, ...] = ()


def retry_transient(recipe: CurateRecipe, folder: str, before_work: BeforeWork = nothing) -> dict[str, int]:
    """Retry a complete raw folder; new images make a new generation.

    Returns the counts of requested rows, new images and shards, and the generation.
    """
    finish_rewrite(folder)
    head, manifest = read_head(folder), load_manifest(folder)
    jobs = retry_jobs(recipe, folder)
    num_requested = sum(manifest.drop_counts.get(reason, 0) for reason in TRANSIENT)
    if jobs:
        before_work()
        rewrite = jobs[0].rewrite
        todo = set(missing_tables(rewrite.staging, [job.name for job in jobs]))
        left = [job for job in jobs if job.name in todo]
        with shared_host_limits(recipe.ingest.fetch.per_host):
            run_shards("retry", retry_shard, left, num_done=len(jobs) - len(left))
        commit_retry(jobs)
    num_came = load_manifest(folder).num_samples - manifest.num_samples
    generation = (read_head(folder) or head or {})["generation"]
    return {"num_rows": num_requested, "num_came": num_came, "num_shards": len(jobs), "generation": generation}


def retry_jobs(recipe: CurateRecipe, folder: str) -> list[RetryJob]:
    """The shards with rows to fetch again."""
    manifest = load_manifest(folder)
    rewrite = Rewrite(folder, "retry", manifest.hash())
    root = root_of(folder)
    tombstones = tombstone_names(root) if root is not None else ()
    return [
        RetryJob(rewrite, recipe.ingest, recipe.source, result.entry.name, tombstones)
        for result in collect_results(folder, [shard.name for shard in manifest.shards])
        if any(reason in TRANSIENT for reason in result.drop_counts)
    ]


def commit_retry(jobs: Sequence[RetryJob]) -> None:
    """Commit the staged shards as the next generation, if there are any."""
    rewrite, names = jobs[0].rewrite, [job.name for job in jobs]
    missing = set(missing_tables(rewrite.staging, names))
    staged = [name for name in names if name not in missing]
    if staged:
        rewrite.commit(staged)


def retry_shard(job: RetryJob) -> None:
    """Fetch the rows of one shard again and stage it if an image arrived. Raises StorageError, ShardError."""
    folder, name = job.rewrite.folder, job.name
    table = read_table(table_url(folder, name))
    try:
        with tempfile.TemporaryFile(dir=work_folder(folder, name)) as spool:
            outcomes = _fetch(job, table, spool)
            if any(isinstance(outcome, SpooledImage) for outcome in outcomes.values()):
                _stage(job, table, outcomes, spool)
    except OSError as error:
        raise StorageError(f"cannot write shard {name} of {folder}: {error.strerror or error}") from error


def _fetch(job: RetryJob, table: pa.Table, spool: IO[bytes]) -> Outcomes:
    urls, reasons = table["url"].to_pylist(), table["drop_reason"].to_pylist()
    boxes, images = _boxes(table, job.source), SharedUrls()
    for row, reason in enumerate(reasons):
        if reason in TRANSIENT:
            images.add(row, urls[row], boxes[row])
    with ImageWorkers(image_decoder(), STORE_IMAGE, job.ingest.image, spool) as workers:
        with closing(
            fetch_rows(job.ingest.fetch, job.name, images.requests, workers.has_capacity, is_retry=True)
        ) as answers:
            for row, answer in answers:
                if isinstance(answer, SampleError):
                    workers.outcomes[row] = answer
                else:
                    workers.submit(row, answer, boxes[row])
        workers.finish()
        images.share(workers.outcomes)
    recalled_images = rules_of(job.rewrite.folder, job.tombstones).images
    for row, outcome in workers.outcomes.items():
        if isinstance(outcome, SpooledImage) and outcome.image.sha256 in recalled_images:
            workers.outcomes[row] = refusal()
    return workers.outcomes


def _boxes(table: pa.Table, source: SourceRecipe) -> list[Boxes]:
    """The boxes to blur per row. Rows with unreadable boxes were dropped as invalid_boxes, which is not transient."""
    if source.blur_boxes_column is None:
        return [()] * table.num_rows
    rows = table.select([source.blur_boxes_column]).to_pylist()
    return [boxes_or_error(row, source)[0] for row in rows]


def _stage(job: RetryJob, table: pa.Table, outcomes: Outcomes, spool: IO[bytes]) -> None:
    """Write the tar with the new images in row order, then the new table into the staging folder."""
    old = read_result(job.rewrite.folder, job.name).entry
    shard_index = int(storage.name_of(job.name))
    new: dict[int, AddSample] = {}
    for row, outcome in outcomes.items():
        if isinstance(outcome, SpooledImage):
            new[row] = partial(_add, table, row, make_key(shard_index, row), outcome, spool)
    entry, offsets, placed = rewrite_tar(job.rewrite.folder, old, table["key"].to_pylist(), new)
    values: dict[int, Mapping[str, Any]] = {row: stored_values(image) for row, image in placed.items()}
    values |= {row: dropped_values(error) for row, error in outcomes.items() if isinstance(error, SampleError)}
    recalled = np.array([is_recalled(outcomes.get(row)) for row in range(table.num_rows)])
    table = _with_values(with_offsets(table, offsets), values)
    replace_table(job.rewrite.staging, blank_rows(table, recalled) if recalled.any() else table, entry)


def _add(
    table: pa.Table, row: int, key: str, spooled: SpooledImage, spool: IO[bytes], writer: ShardWriter
) -> PlacedImage:
    values = table.slice(row, 1).to_pylist()[0]
    kept = {name: value for name, value in values.items() if name not in SAMPLE.names}
    source_row = SourceRow(url=values["url"], caption=values["caption"], kept=kept)
    return add_sample(writer, key, source_row, values["uid"], spooled, spool)


def _with_values(table: pa.Table, values: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """The table with new outcomes of some rows; uid, url and caption stay."""
    for name in (name for name in SAMPLE.names if name in table.column_names and name not in ("uid", "url", "caption")):
        column = table[name].to_pylist()
        for row, of_row in values.items():
            column[row] = of_row.get(name)
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.array(column, table.schema.field(index).type))
    return table
