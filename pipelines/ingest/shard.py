"""Make one raw shard: rows of the source -> images -> tar and table. The unit of work, retry and resume."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.engine.counters import Report
from pairloom.pipelines.fetch.fetch_shard import fetch_rows
from pairloom.pipelines.images.decode_queue import STORE_IMAGE, ImageWorkers
from pairloom.pipelines.images.decoder_process import SpooledImage, image_decoder
from pairloom.pipelines.ingest.shared_urls import SharedUrls
from pairloom.pipelines.optout.rules import blank, is_recalled, refusal, rules_of
from pairloom.pipelines.raw.row_uids import save_uids
from pairloom.pipelines.raw.table import PlacedImage, ShardResult, make_table, put_table, read_result
from pairloom.pipelines.raw.tar import add_sample, put_tar, scratch_file, work_folder
from pairloom.pipelines.sources.open_source import open_source
from pairloom.pipelines.sources.source import Piece, Source, SourceRow
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.shard import ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tables import make_uid
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import BadFileError, InputError, SampleError, StorageError
from pairloom.schemas.images.columns import sha256_hex
from pairloom.schemas.recipes.curate import IngestRecipe
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage

INSPECT_IMAGE = "pairloom.pipelines.images.store_image:inspect_image"

Outcomes = dict[int, SpooledImage | SampleError]


@dataclass(frozen=True)
class ShardJob:
    """The arguments of a worker for one shard."""

    source: SourceRecipe
    ingest: IngestRecipe
    folder: str
    shard_index: int
    pieces: tuple[Piece, ...]
    duplicate_rows: npt.NDArray[np.int64] | None = None  # None for adopted tars, which are compared afterwards
    tombstones: tuple[str, ...] = ()  # lists of opt-outs to apply

    @property
    def name(self) -> str:
        """Name of the shard below its folder."""
        return shard_name(self.shard_index)

    def read_rows(self, source: Source) -> Iterator[SourceRow]:
        """The rows of all pieces, in order. Raises BadFileError."""
        for piece in self.pieces:
            try:
                yield from source.read_rows(piece)
            except InputError as error:
                raise BadFileError(str(error)) from error


def uid_of(row: SourceRow) -> str:
    """The source's own uid, or the hash of url (without url: of the image) and caption."""
    if row.uid is not None:
        return row.uid
    image_sha256 = sha256_hex(row.image) if row.url is None and row.image is not None else None
    return make_uid(row.url, row.caption or "", image_sha256)


def write_uids(job: ShardJob) -> None:
    """Write the uids of a shard's rows. All uids exist before the first shard is made, to find duplicates."""
    save_uids(job.folder, job.name, [uid_of(row) for row in job.read_rows(open_source(job.source))])


class CountedOutcomes(Outcomes):
    """Outcomes that also count each finished row in a report."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def __setitem__(self, row: int, outcome: SpooledImage | SampleError) -> None:
        super().__setitem__(row, outcome)
        if isinstance(outcome, SampleError):
            self._report.note_drop(outcome.drop_reason.value)
        else:
            self._report.note_image(outcome.byte_range.num_bytes)


def make_shard(job: ShardJob, report: Report | None = None) -> ShardResult:
    """Make one raw shard; its table is written last. Raises ShardError (network down), StorageError, InputError."""
    if storage.exists(table_url(job.folder, job.name)):
        return read_result(job.folder, job.name)
    started_at = time.monotonic()
    source = open_source(job.source)
    work = INSPECT_IMAGE if source.is_adopted else STORE_IMAGE
    try:
        with tempfile.TemporaryFile(dir=work_folder(job.folder, job.name)) as spool:
            with ImageWorkers(image_decoder(), work, job.ingest.image, spool) as workers:
                workers.outcomes = CountedOutcomes(report or Report())
                collect = _collect_images if source.has_images else _fetch_images
                rows, uids = collect(job, source, workers)
            rows = _blank_recalled(job, rows, workers.outcomes)
            if source.is_adopted:
                result = _commit_adopted(job, source, rows, uids, workers.outcomes)
            else:
                result = _commit(job, source, rows, uids, workers.outcomes, spool)
    except OSError as error:
        raise StorageError(f"cannot write shard {job.name} of {job.folder}: {error.strerror or error}") from error
    _put_stats(job, result, time.monotonic() - started_at)
    return result


def _refusal(row: SourceRow, job: ShardJob, has_images: bool, is_duplicate: bool) -> SampleError | None:
    """The reason to drop a row before its image is fetched or decoded, or None."""
    if job.tombstones and rules_of(job.folder, job.tombstones).names(uid_of(row), row.url):
        return refusal()
    if row.error is not None:
        return row.error
    if not has_images and row.url is None:
        return SampleError(DropReason.INVALID_URL, "no URL")
    if row.caption is None:
        return SampleError(DropReason.EMPTY_CAPTION, "no caption")
    if len(row.caption) > job.ingest.max_caption_chars:
        return SampleError(DropReason.CAPTION_TOO_LONG, f"{len(row.caption)} characters")
    if has_images and row.image is None:
        return SampleError(DropReason.MISSING_IMAGE, "no image bytes")
    if is_duplicate:
        return SampleError(DropReason.DUPLICATE_ROW, "the same uid came earlier")
    return None


def _blank_recalled(job: ShardJob, rows: Sequence[SourceRow], outcomes: Outcomes) -> list[SourceRow]:
    """The rows with recalled ones blanked, also those recalled by their images."""
    recalled_images = rules_of(job.folder, job.tombstones).images
    for index, outcome in outcomes.items():
        if not isinstance(outcome, SampleError) and outcome.image.sha256 in recalled_images:
            outcomes[index] = refusal()
    return [blank(row) if is_recalled(outcomes[index]) else row for index, row in enumerate(rows)]


def _shorten(row: SourceRow, max_chars: int) -> SourceRow:
    """The row to keep in memory: without its image, with a shortened caption."""
    caption = row.caption[:max_chars] if row.caption is not None else None
    return replace(row, image=None, caption=caption)


def _collect_images(job: ShardJob, source: Source, workers: ImageWorkers) -> tuple[list[SourceRow], list[str]]:
    """Rows and uids of a source with images; submits the images."""
    repeated = _repeated(job)
    rows, uids = [], []
    for index, row in enumerate(job.read_rows(source)):
        refusal = _refusal(row, job, True, index in repeated)
        if refusal is not None:
            workers.outcomes[index] = refusal
        elif row.image is not None:
            workers.wait_for_capacity()
            workers.submit(index, row.image, row.boxes)
        uids.append(uid_of(row))
        rows.append(_shorten(row, job.ingest.max_caption_chars))
    workers.finish()
    return rows, uids


def _fetch_images(job: ShardJob, source: Source, workers: ImageWorkers) -> tuple[list[SourceRow], list[str]]:
    """Rows and uids of a source with URLs; fetches the images. Raises ShardError if the network is down."""
    repeated = _repeated(job)
    rows, uids, images = [], [], SharedUrls()
    for index, row in enumerate(job.read_rows(source)):
        refusal = _refusal(row, job, False, index in repeated)
        if refusal is not None:
            workers.outcomes[index] = refusal
        else:
            images.add(index, row.url, row.boxes)
        uids.append(uid_of(row))
        rows.append(_shorten(row, job.ingest.max_caption_chars))
    with closing(fetch_rows(job.ingest.fetch, job.name, images.requests, workers.has_capacity)) as answers:
        for index, answer in answers:
            if isinstance(answer, SampleError):
                workers.outcomes[index] = answer
            else:
                workers.submit(index, answer, rows[index].boxes)
    workers.finish()
    images.share(workers.outcomes)
    return rows, uids


def _repeated(job: ShardJob) -> set[int]:
    return set() if job.duplicate_rows is None else {int(row) for row in job.duplicate_rows}


def _commit_adopted(
    job: ShardJob, source: Source, rows: Sequence[SourceRow], uids: Sequence[str], outcomes: Outcomes
) -> ShardResult:
    """Write the table of an adopted tar."""
    placed: list[PlacedImage | SampleError] = []
    for index, row in enumerate(rows):
        outcome = outcomes[index]
        if not isinstance(outcome, SampleError) and row.key is not None and row.byte_range is not None:
            placed.append(PlacedImage(row.key, outcome.image, row.byte_range))
        elif isinstance(outcome, SampleError):
            placed.append(outcome)
    table = make_table(rows, uids, placed, source.kept_schema(job.pieces[0].path))
    save_uids(job.folder, job.name, uids)
    tar = job.pieces[0].path
    num_samples = sum(isinstance(outcome, PlacedImage) for outcome in placed)
    entry = ShardEntry(job.name, len(rows), num_samples, storage.size(tar), sha256=None, url=tar)
    return put_table(job.folder, table, entry)


def _commit(
    job: ShardJob,
    source: Source,
    rows: Sequence[SourceRow],
    uids: Sequence[str],
    outcomes: Outcomes,
    spool: IO[bytes],
) -> ShardResult:
    """Write the tar in row order, then the table."""
    with scratch_file(job.folder, job.name) as scratch:
        placed: list[PlacedImage | SampleError] = []
        with ShardWriter(scratch) as writer:
            for index, row in enumerate(rows):
                outcome = outcomes[index]
                if isinstance(outcome, SampleError):
                    placed.append(outcome)
                else:
                    placed.append(
                        add_sample(writer, make_key(job.shard_index, index), row, uids[index], outcome, spool)
                    )
        sha256 = writer.close()
        table = make_table(rows, uids, placed, source.kept_schema(job.pieces[0].path))
        tar_url = put_tar(job.folder, job.name, scratch, sha256)
    entry = ShardEntry(job.name, len(rows), writer.num_samples, writer.num_bytes, sha256, tar_url)
    return put_table(job.folder, table, entry)


def _put_stats(job: ShardJob, result: ShardResult, seconds: float) -> None:
    """Write counts and times of the shard; they are not part of the data set."""
    stats = {
        "num_rows": result.entry.num_rows,
        "num_samples": result.entry.num_samples,
        "num_bytes": result.entry.num_bytes,
        "drop_counts": dict(result.drop_counts),
        "seconds": round(seconds, 3),
        "rows_per_s": round(result.entry.num_rows / max(seconds, 1e-9), 1),
    }
    storage.put_bytes(f"{storage.join(job.folder, job.name)}_stats.json", json.dumps(stats, sort_keys=True).encode())
