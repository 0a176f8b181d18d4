"""Reshard: kept samples -> curated shards, shuffled in blocks.

The raw shards are sorted by a hash of (seed, name) and split into groups of `raw_shards_per_group`. One task handles
one group: it sorts the group's kept samples by a hash of (seed, uid) and copies their bytes into its own output shards,
evenly filled with at most `samples_per_shard`. Output numbers follow from the kept counts alone. The group is the unit
of resume, and any number of workers gives the same bytes. A task holds the tables of its group in memory, not its
images.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, StepResult, missing_tables, nothing
from pairloom.pipelines.reshard.curated_shard import Job, Readers, read_entry, read_kept, write_shard
from pairloom.pipelines.reshard.global_shuffle import shuffle_globally, spill_folder
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import settings_of, step_hash

STEP = "curated"
VERSION = 1


@dataclass(frozen=True)
class Group:
    """Raw shards that are permuted together, and their output shards."""

    raw_shards: tuple[ShardEntry, ...]
    first_output: int
    num_outputs: int


def reshard_folder(recipe: CurateRecipe, raw_folder: str, selection_folder: str) -> StepFolder:
    """The folder of the curated data set."""
    parents = (load_manifest(raw_folder).hash(), load_manifest(selection_folder).hash())
    result = step_hash(STEP, VERSION, settings_of(recipe.reshard), parents)
    return StepFolder(recipe.root, STEP, recipe.reshard.name, result, parents)


def reshard(recipe: CurateRecipe, raw_folder: str, selection_folder: str, before_work: BeforeWork = nothing) -> str:
    """Write the curated data set. Returns its folder. Raises InputError if the selection keeps nothing."""
    target = reshard_folder(recipe, raw_folder, selection_folder)
    if not target.is_complete():
        _check_keeps_samples(selection_folder)
    job = Job(raw_folder, selection_folder, target.url, recipe.reshard.shuffle_seed)
    write = _shuffle_globally if recipe.reshard.shuffle == "global" else _shuffle_blocks
    return target.run_once(before_work, partial(write, recipe, job))


def _check_keeps_samples(selection_folder: str) -> None:
    selection = load_manifest(selection_folder)
    if selection.num_samples == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(selection.drop_counts.items()))
        raise InputError(f"{selection_folder}: the selection keeps no sample ({reasons}); loosen its rules")


def _shuffle_globally(recipe: CurateRecipe, job: Job) -> StepResult:
    raw, selection = load_manifest(job.raw_folder), load_manifest(job.selection_folder)
    shards = shuffle_globally(recipe.reshard, job, raw, selection)
    return StepResult(shards, scratch=(spill_folder(job.folder),))


def _shuffle_blocks(recipe: CurateRecipe, job: Job) -> StepResult:
    raw, selection = load_manifest(job.raw_folder), load_manifest(job.selection_folder)
    groups = plan_groups(raw, selection, recipe)
    num_outputs = groups[-1].first_output + groups[-1].num_outputs
    outputs = [shard_name(index) for index in range(num_outputs)]
    missing = set(missing_tables(job.folder, outputs))
    written: dict[str, ShardEntry] = {}
    todo = [group for group in groups if missing & set(_outputs_of(group))]
    for entries in run_shards("reshard", partial(write_group, job), todo, len(groups) - len(todo)):
        written.update({entry.name: entry for entry in entries})
    return StepResult([written.get(name) or read_entry(job.folder, name) for name in outputs])


def plan_groups(raw: Manifest, selection: Manifest, recipe: CurateRecipe) -> list[Group]:
    """Groups in the order of their output shards, without groups that keep nothing."""
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
    """A random sort key, a function of seed and name alone."""
    return hashlib.sha256(f"shuffle\0{seed}\0{name}".encode()).digest()


def _outputs_of(group: Group) -> list[str]:
    return [shard_name(index) for index in range(group.first_output, group.first_output + group.num_outputs)]


def write_group(job: Job, group: Group) -> list[ShardEntry]:
    """Write the missing output shards of one group."""
    kept = pa.concat_tables([read_kept(job, shard) for shard in group.raw_shards], promote_options="permissive")
    draws = [_draw(job.seed, uid) for uid in kept["uid"].to_pylist()]
    order = sorted(range(len(draws)), key=draws.__getitem__)
    edges = [len(order) * output // group.num_outputs for output in range(group.num_outputs + 1)]
    names = _outputs_of(group)
    missing = set(missing_tables(job.folder, names))
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        readers = Readers(job.raw_folder, group.raw_shards, scratch)
        for output, name in enumerate(names):
            if name in missing:
                samples = kept.take(pa.array(order[edges[output] : edges[output + 1]])).to_pylist()
                entries.append(write_shard(job.folder, group.first_output + output, samples, readers.read))
            else:
                entries.append(read_entry(job.folder, name))
        readers.close()
    return entries
