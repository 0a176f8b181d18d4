"""The balance step: the entries that every caption matches. `select` draws by them, as its last rule.

Matching takes minutes and depends on the entries alone, so it is a separate step, resumable by shard. The draw takes
seconds and can be repeated with another t.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pairloom.pipelines.balance.entries import choose_entries, count_words, load_entries, matcher_of
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, StepResult, missing_tables, nothing
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.balance import EntryBalance
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import settings_of, step_hash
from pairloom.schemas.storage import storage

Key = TypeVar("Key")

STEP = "balance"
VERSION = 1
MAX_COUNTED_SHARDS = 1000  # for making entries; more captions change few entries
RARE = 2  # with many shards, words and pairs that are rarer within a shard are not sent to the driver

MATCHES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("entries", pa.list_(pa.int32())),  # lines of entries.txt, from 0; null without an image
    ]
)


def balance_folder(recipe: CurateRecipe, raw_folder: str) -> StepFolder:
    """The folder of the matches. Raises InputError if the list of entries cannot be read."""
    rules = _rules(recipe)
    parents = (load_manifest(raw_folder).hash(),)
    unused = {"min_count", "min_information"} if rules.entries else set()
    inputs = {"entries": _fingerprint(load_entries(rules.entries))} if rules.entries else {}
    result = step_hash(STEP, VERSION, settings_of(rules, unused), parents, inputs)
    return StepFolder(recipe.root, STEP, rules.name, result, parents)


def _rules(recipe: CurateRecipe) -> EntryBalance:
    if not isinstance(recipe.balance, EntryBalance):
        raise ValueError("the recipe does not balance by entries")
    return recipe.balance


def _fingerprint(entries: list[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def entries_url(folder: str) -> str:
    """URL of the list of entries; tables of the folder hold line numbers of it."""
    return storage.join(folder, "entries.txt")


def balance(recipe: CurateRecipe, raw_folder: str, before_work: BeforeWork = nothing) -> str:
    """Match all captions. Returns the folder. Existing shards are not matched again."""
    target = balance_folder(recipe, raw_folder)
    return target.run_once(before_work, partial(_match, _rules(recipe), raw_folder, target.url))


def _match(rules: EntryBalance, raw_folder: str, folder: str) -> StepResult:
    raw = load_manifest(raw_folder)
    if not storage.exists(entries_url(folder)):
        entries = _entries(rules, raw_folder, raw)
        storage.put_if_absent(entries_url(folder), ("\n".join(entries) + "\n").encode())
    names = [shard.name for shard in raw.shards]
    todo = missing_tables(folder, names)
    run_shards("balance", partial(match_shard, raw_folder, folder), todo, len(names) - len(todo))
    shards = [ShardEntry(shard.name, shard.num_rows, shard.num_samples, num_bytes=0) for shard in raw.shards]
    return StepResult(shards, details={"num_entries": len(load_entries(entries_url(folder)))})


def _entries(rules: EntryBalance, raw_folder: str, raw: Manifest) -> list[str]:
    """The user's entries, or entries made from the captions of at most MAX_COUNTED_SHARDS shards."""
    if rules.entries is not None:
        return load_entries(rules.entries)
    names = sorted((shard.name for shard in raw.shards), key=lambda name: hashlib.sha256(name.encode()).digest())
    names = names[:MAX_COUNTED_SHARDS]
    least = 1 if len(names) <= rules.min_count else RARE
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for of_shard in run_shards("entries", partial(count_shard, raw_folder, least), names):
        words.update(of_shard[0])
        pairs.update(of_shard[1])
    entries = choose_entries(words, pairs, rules.min_count, rules.min_information)
    if not entries:
        raise InputError(f"balance.min_count: no word occurs {rules.min_count} times; lower it or set balance.entries")
    return entries


def count_shard(raw_folder: str, least: int, shard_name: str) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Words and pairs of neighbours that occur at least `least` times in the captions of one shard."""
    words, pairs = count_words(caption for caption in _captions(raw_folder, shard_name)[1] if caption is not None)
    return _frequent(words, least), _frequent(pairs, least)


def _frequent(counts: Counter[Key], least: int) -> Counter[Key]:
    return Counter({key: count for key, count in counts.items() if count >= least})


def match_shard(raw_folder: str, folder: str, shard_name: str) -> None:
    """Write the entries that the captions of one raw shard match."""
    uids, captions = _captions(raw_folder, shard_name)
    rows, entries = matcher_of(entries_url(folder)).match([caption or "" for caption in captions])
    offsets = np.searchsorted(rows, np.arange(len(captions) + 1))
    missing = pa.array([caption is None for caption in captions], pa.bool_())
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(entries, pa.int32()), mask=missing)
    write_table(table_url(folder, shard_name), pa.table([uids, lists], schema=MATCHES))


def _captions(raw_folder: str, shard_name: str) -> tuple[pa.ChunkedArray, list[str | None]]:
    """Uids and captions of a shard; None for a row without an image."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    rows = zip(raw["caption"].to_pylist(), raw["status"].to_pylist(), strict=True)
    return raw["uid"], [(caption or "") if status == STATUS_SUCCESS else None for caption, status in rows]
