"""Reshard: kept samples -> curated shards, shuffled in blocks.

The raw shards are put in a seeded order and cut into groups of `raw_shards_per_group`. One task handles one group:
it orders the group's kept samples by a hash of (seed, uid) and copies their bytes into its own output shards, filled
evenly with at most `samples_per_shard`. Output numbers follow from the kept counts alone, so that groups know them
beforehand; the group is the unit of resume, and any number of workers gives the same bytes. Images are read where
they lie in the raw tars: memory holds one group's tables, never its images.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.run_step import run_shards
from pipelines.step_folder import BeforeWork, StepFolder, missing_tables, nothing
from schemas import storage
from schemas.curate_recipe import CurateRecipe
from schemas.errors import InputError
from schemas.image_decode import EXTENSIONS
from schemas.manifest import Manifest, ShardEntry, load_manifest, table_url, tar_url
from schemas.recipe_io import settings_of, step_hash
from schemas.sample import CURATED, check_joined, read_table, write_table
from schemas.shard import ShardReader, ShardWriter, json_bytes, make_key, shard_name

STEP = "curated"
VERSION = 1
# Columns that join the raw ones; named so that no source's own column is called the same.
WEIGHT, GROUP, RAW_SHARD, RAW_ROW = "pairloom.weight", "pairloom.group", "pairloom.raw_shard", "pairloom.raw_row"
_NOT_IN_JSON = {"status", "drop_reason", "error_message", "offset", "num_bytes", WEIGHT, GROUP, RAW_SHARD, RAW_ROW}
_TAR_SHA256, _TAR_BYTES = b"tar_sha256", b"tar_num_bytes"  # metadata of the table, which is the shard's marker


@dataclass(frozen=True)
class Group:
    """Raw shards that are permuted together, and the output shards that they fill."""

    raw_shards: tuple[ShardEntry, ...]
    first_output: int
    num_outputs: int


@dataclass(frozen=True)
class Job:
    """What every task needs to know."""

    raw_folder: str
    selection_folder: str
    folder: str
    seed: int


def reshard_folder(recipe: CurateRecipe, raw_folder: str, selection_folder: str) -> StepFolder:
    """Where the curated data set lies."""
    parents = (load_manifest(raw_folder).hash(), load_manifest(selection_folder).hash())
    result = step_hash(STEP, VERSION, settings_of(recipe.reshard, exclude={"name"}), parents)
    return StepFolder(recipe.root, STEP, recipe.reshard.name, result, parents)


def reshard(recipe: CurateRecipe, raw_folder: str, selection_folder: str, before_work: BeforeWork = nothing) -> str:
    """Write the curated data set; returns its folder. Raises InputError when the selection keeps nothing."""
    target = reshard_folder(recipe, raw_folder, selection_folder)
    if target.is_complete():
        target.point_latest()
        return target.url
    raw, selection = load_manifest(raw_folder), load_manifest(selection_folder)
    if selection.num_samples == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(selection.drop_counts.items()))
        raise InputError(f"{selection_folder}: the selection keeps no sample ({reasons}); loosen its rules")
    before_work()
    groups = plan_groups(raw, selection, recipe)
    job = Job(raw_folder, selection_folder, target.url, recipe.reshard.shuffle_seed)
    num_outputs = groups[-1].first_output + groups[-1].num_outputs
    outputs = [shard_name(index) for index in range(num_outputs)]
    missing = set(missing_tables(target.url, outputs))
    written: dict[str, ShardEntry] = {}
    todo = [group for group in groups if missing & set(_outputs_of(group))]
    for entries in run_shards("reshard", partial(write_group, job), todo, len(groups) - len(todo)):
        written.update({entry.name: entry for entry in entries})
    target.finish([written.get(name) or read_entry(target.url, name) for name in outputs])
    return target.url


def plan_groups(raw: Manifest, selection: Manifest, recipe: CurateRecipe) -> list[Group]:
    """Groups in the order of their output shards; a group that keeps nothing is left out."""
    kept = {shard.name: shard.num_samples for shard in selection.shards}
    shuffled = sorted(raw.shards, key=lambda shard: _draw(recipe.reshard.shuffle_seed, shard.name))
    size = recipe.reshard.raw_shards_per_group
    groups: list[Group] = []
    first_output = 0
    for start in range(0, len(shuffled), size):
        members = tuple(shard for shard in shuffled[start : start + size] if kept[shard.name])
        num_kept = sum(kept[shard.name] for shard in members)
        num_outputs = -(-num_kept // recipe.reshard.samples_per_shard)
        if num_outputs:
            groups.append(Group(members, first_output, num_outputs))
        first_output += num_outputs
    return groups


def _draw(seed: int, name: str) -> bytes:
    """A random key that depends on the seed and the name alone."""
    return hashlib.sha256(f"shuffle\0{seed}\0{name}".encode()).digest()


def _outputs_of(group: Group) -> list[str]:
    return [shard_name(index) for index in range(group.first_output, group.first_output + group.num_outputs)]


def write_group(job: Job, group: Group) -> list[ShardEntry]:
    """Write the output shards of one group that are not there yet."""
    kept = pa.concat_tables([read_kept(job, shard) for shard in group.raw_shards], promote_options="permissive")
    draws = [_draw(job.seed, uid) for uid in kept["uid"].to_pylist()]
    order = sorted(range(len(draws)), key=draws.__getitem__)
    edges = [len(order) * part // group.num_outputs for part in range(group.num_outputs + 1)]
    names = _outputs_of(group)
    missing = set(missing_tables(job.folder, names))
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        readers = Readers(job.raw_folder, group.raw_shards, scratch)
        for place, name in enumerate(names):
            if name in missing:
                samples = kept.take(pa.array(order[edges[place] : edges[place + 1]])).to_pylist()
                entries.append(write_shard(job.folder, group.first_output + place, samples, readers))
            else:
                entries.append(read_entry(job.folder, name))
        readers.close()
    return entries


def read_kept(job: Job, shard: ShardEntry) -> pa.Table:
    """The kept samples of one raw shard: their raw columns, their decision, and where they lie."""
    selection = read_table(table_url(job.selection_folder, shard.name), ["kept", "weight", "duplicate_group"])
    raw = read_table(table_url(job.raw_folder, shard.name))
    check_joined(raw, selection, f"{job.selection_folder}: {shard.name}")
    rows = pa.array(np.flatnonzero(np.asarray(selection["kept"])))
    kept = raw.drop_columns(["thumbnail", "phash"]).take(rows)
    decisions = selection.take(rows)
    for column, values in (
        (WEIGHT, decisions["weight"]),
        (GROUP, decisions["duplicate_group"]),
        (RAW_SHARD, pa.array([shard.name] * len(rows), pa.string())),
        (RAW_ROW, rows.cast(pa.int32())),
    ):
        kept = kept.append_column(column, values)
    return kept


class Readers:
    """Opens each raw tar of a group once; a remote tar is copied to local disk first."""

    def __init__(self, raw_folder: str, shards: Sequence[ShardEntry], scratch: str) -> None:
        self._urls = {shard.name: tar_url(raw_folder, shard) for shard in shards}
        self._scratch = scratch
        self._open: dict[str, ShardReader] = {}

    def read(self, raw_shard: str, offset: int, num_bytes: int) -> bytes:
        """The bytes of one image."""
        if raw_shard not in self._open:
            url = self._urls[raw_shard]
            if not storage.is_local(url):
                copy = str(Path(self._scratch) / raw_shard.replace("/", "-"))
                storage.get_file(url, copy)
                url = copy
            self._open[raw_shard] = ShardReader(url)
        return self._open[raw_shard].read(offset, num_bytes)

    def close(self) -> None:
        """Release all tars."""
        for reader in self._open.values():
            reader.close()


def write_shard(folder: str, index: int, samples: Sequence[dict[str, Any]], readers: Readers) -> ShardEntry:
    """Write one curated shard: the tar, then its table, which marks it as done."""
    name = shard_name(index)
    with storage.build_locally(storage.join(folder, f"{name}.tar")) as path:
        with ShardWriter(path) as writer:
            rows = [_add(writer, make_key(index, row), sample, readers) for row, sample in enumerate(samples)]
        digest = writer.close()
    table = pa.Table.from_pylist(rows, schema=CURATED)
    marker = {_TAR_SHA256: digest.encode(), _TAR_BYTES: str(writer.num_bytes).encode()}
    write_table(table_url(folder, name), table.replace_schema_metadata(marker))
    return ShardEntry(name, len(rows), len(rows), writer.num_bytes, digest)


def _add(writer: ShardWriter, key: str, sample: dict[str, Any], readers: Readers) -> dict[str, Any]:
    """Append one sample to the tar; returns its row of the curated table."""
    image = readers.read(sample[RAW_SHARD], sample["offset"], sample["num_bytes"])
    extension = EXTENSIONS[sample["mime_type"]]
    caption = sample["caption"] or ""
    notes = {name: _plain(value) for name, value in sample.items() if name not in _NOT_IN_JSON}
    decision = {"key": key, "weight": sample[WEIGHT], "duplicate_group": sample[GROUP]}
    members = {
        extension: image,
        "txt": caption.encode("utf-8", "replace"),
        "json": json_bytes({**notes, **decision}),
    }
    place = writer.add(key, members)[extension]
    return {
        **{name: sample[name] for name in ("uid", "url", "width", "height", "image_sha256", "mime_type")},
        **decision,
        "caption": caption,
        "raw_shard": sample[RAW_SHARD],
        "raw_row": sample[RAW_ROW],
        "offset": place.offset,
        "num_bytes": place.num_bytes,
    }


def _plain(value: Any) -> Any:
    """A value of the source's own columns as JSON holds it: times, decimals and bytes become text."""
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


def read_entry(folder: str, name: str) -> ShardEntry:
    """The manifest entry of a shard that an earlier attempt finished, from its table."""
    table = read_table(table_url(folder, name), ["uid"])
    metadata = table.schema.metadata
    digest = metadata[_TAR_SHA256].decode()
    return ShardEntry(name, table.num_rows, table.num_rows, int(metadata[_TAR_BYTES]), digest)
