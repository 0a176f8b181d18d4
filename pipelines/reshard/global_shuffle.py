"""Reshard with `shuffle: global`: a full shuffle in two passes, which writes every kept image twice.

Pass one: a task copies the kept samples of some raw shards into one spill file, sorted by bucket (spill_file.py). Pass
two: a task reads one bucket from all spill files, sorts it and writes its output shards. The bucket and position of a
sample are a hash of (seed, uid) alone. The units of resume are the spill file and the bucket. Each pass reads every
byte once; the number of requests, two per bucket and spill file, grows quadratically.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.algorithms.seeded_hash import mixed
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.step_folder import missing_tables
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.reshard.curated_shard import Job, Readers, read_entry, read_kept, write_shard
from pairloom.pipelines.reshard.spill_file import copy_bucket, read_copied, write_buckets
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, table_url
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.recipes.curate import ReshardRecipe
from pairloom.schemas.storage import storage

logger = logging.getLogger("pairloom")
NUM_THREADS = 8
SHARDS_PER_BUCKET = 16  # output shards; a task of pass two holds one bucket on its local disk
SPILL_EXTENSION = "spill"
POSITION = "pairloom.place"  # column of spilled rows: sort key within the bucket


@dataclass(frozen=True)
class SpillJob:
    """Raw shards whose kept samples go into one spill file."""

    name: str
    raw_shards: tuple[ShardEntry, ...]
    seed: int
    num_buckets: int


@dataclass(frozen=True)
class BucketJob:
    """One bucket and the output shards that it fills."""

    index: int
    spills: tuple[str, ...]
    first_output: int
    num_outputs: int


def shuffle_globally(recipe: ReshardRecipe, job: Job, raw: Manifest, selection: Manifest) -> list[ShardEntry]:
    """Write all output shards. Returns their manifest entries in order."""
    kept = {shard.name: shard.num_samples for shard in selection.shards}
    members = [shard for shard in raw.shards if kept[shard.name]]
    num_buckets = max(1, round(selection.num_samples / (recipe.samples_per_shard * SHARDS_PER_BUCKET)))
    counts = _count_buckets(job, [shard.name for shard in members], num_buckets)
    _log_cost(raw, selection, num_buckets)
    size = recipe.raw_shards_per_group
    spills = [
        SpillJob(shard_name(start // size), tuple(members[start : start + size]), job.seed, num_buckets)
        for start in range(0, len(members), size)
    ]
    buckets = _plan(counts, recipe.samples_per_shard, tuple(spill.name for spill in spills))
    outputs = [shard_name(index) for index in range(sum(bucket.num_outputs for bucket in buckets))]
    missing = set(missing_tables(job.folder, outputs))
    todo = [bucket for bucket in buckets if missing & set(_outputs_of(bucket))]
    if todo:
        left = set(missing_tables(_spill_folder(job), [spill.name for spill in spills], SPILL_EXTENSION))
        to_spill = [spill for spill in spills if spill.name in left]
        run_shards("shuffle", partial(write_spill, job), to_spill, len(spills) - len(to_spill))
    written: dict[str, ShardEntry] = {}
    for entries in run_shards("reshard", partial(write_bucket, job), todo, len(buckets) - len(todo)):
        written.update({entry.name: entry for entry in entries})
    return [written.get(name) or read_entry(job.folder, name) for name in outputs]


def _count_buckets(job: Job, names: Sequence[str], num_buckets: int) -> npt.NDArray[np.int64]:
    """Number of kept samples per bucket."""

    def count(name: str) -> npt.NDArray[np.int64]:
        table = read_table(table_url(job.selection_folder, name), ["uid", "kept"])
        uids = pack_uids(table.filter(pc.field("kept"))["uid"].to_pylist())
        return np.bincount(_bucket_of(mixed(uids, job.seed), num_buckets), minlength=num_buckets)

    total = np.zeros(num_buckets, np.int64)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for counts in pool.map(count, names):
            total += counts
    return total


def _bucket_of(draws: npt.NDArray[np.uint64], num_buckets: int) -> npt.NDArray[np.int64]:
    """The bucket of each draw: equal ranges, by integer arithmetic."""
    return (((draws >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)).astype(np.int64)


def _log_cost(raw: Manifest, selection: Manifest, num_buckets: int) -> None:
    """Log the cost of the second pass before it starts."""
    share = selection.num_samples / max(1, raw.num_samples)
    gigabytes = raw.num_bytes * share / 1e9
    logger.info(
        "reshard: shuffle: global writes about %.2f GB to spill files and reads them again, in %d buckets; "
        "shuffle: block needs neither", gigabytes, num_buckets
    )  # fmt: skip


def _plan(counts: npt.NDArray[np.int64], samples_per_shard: int, spills: tuple[str, ...]) -> list[BucketJob]:
    """The buckets with their output shards, whose numbers follow from the counts alone."""
    buckets, first_output = [], 0
    for index, count in enumerate(counts.tolist()):
        num_outputs = -(-count // samples_per_shard)
        if num_outputs:
            buckets.append(BucketJob(index, spills, first_output, num_outputs))
        first_output += num_outputs
    return buckets


def _outputs_of(bucket: BucketJob) -> list[str]:
    return [shard_name(index) for index in range(bucket.first_output, bucket.first_output + bucket.num_outputs)]


def _spill_folder(job: Job) -> str:
    return storage.join(job.folder, "spill")


def _spill_url(job: Job, name: str) -> str:
    return storage.join(_spill_folder(job), f"{name}.{SPILL_EXTENSION}")


def write_spill(job: Job, spill: SpillJob) -> None:
    """Write the kept samples of some raw shards, sorted by bucket and draw."""
    kept = pa.concat_tables([read_kept(job, shard) for shard in spill.raw_shards], promote_options="permissive")
    draws = mixed(pack_uids(kept["uid"].to_pylist()), spill.seed)
    buckets = _bucket_of(draws, spill.num_buckets)
    order = np.lexsort((draws, buckets))
    rows = kept.take(pa.array(order)).append_column(POSITION, pa.array(draws[order], pa.uint64()))
    edges = np.searchsorted(buckets[order], np.arange(spill.num_buckets + 1))
    with tempfile.TemporaryDirectory() as scratch:
        readers = Readers(job.raw_folder, spill.raw_shards, scratch)
        write_buckets(_spill_url(job, spill.name), rows, edges, readers.read)
        readers.close()


def write_bucket(job: Job, bucket: BucketJob) -> list[ShardEntry]:
    """Read one bucket from all spill files and write its missing output shards."""
    with tempfile.TemporaryDirectory() as scratch:
        copied = [_copy(job, name, bucket.index, Path(scratch)) for name in bucket.spills]
        samples = pa.concat_tables([rows for rows in copied if rows is not None], promote_options="permissive")
        order = np.lexsort((np.asarray(samples["uid"].to_pylist()), samples[POSITION].to_numpy()))
        edges = [len(order) * output // bucket.num_outputs for output in range(bucket.num_outputs + 1)]
        missing = set(missing_tables(job.folder, _outputs_of(bucket)))
        entries = []
        for output, name in enumerate(_outputs_of(bucket)):
            if name in missing:
                rows = samples.take(pa.array(order[edges[output] : edges[output + 1]])).to_pylist()
                entries.append(
                    write_shard(job.folder, bucket.first_output + output, rows, partial(read_copied, Path(scratch)))
                )
            else:
                entries.append(read_entry(job.folder, name))
    return entries


def _copy(job: Job, name: str, bucket: int, scratch: Path) -> pa.Table | None:
    return copy_bucket(_spill_url(job, name), bucket, scratch / name.replace("/", "-"))


def spill_folder(folder: str) -> str:
    """The folder of the first pass; removed after the manifest is written."""
    return storage.join(folder, "spill")
