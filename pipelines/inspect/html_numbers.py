"""Numbers of a report: funnel and drop reasons over all shards, histograms and tables over a sample of shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.engine.step_folder import latest_folder
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, is_complete, load_manifest, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, check_joined, read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

MAX_SHARDS = 200  # for histograms and tables; funnel and drop reasons use all shards
TOP = 15  # rows per table
_NO_MEASURE = {"uid", "fold", "cluster"}  # columns that are not measurements

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selected:
    """A selection with its parents."""

    root: str
    folder: str
    manifest: Manifest
    raw_folder: str
    raw: Manifest
    dedupe_folder: str
    signals: dict[str, str]  # name -> folder, for the same raw shards
    shards: tuple[ShardEntry, ...]  # sample of the raw shards


def find_selected(root: str, folder: str) -> Selected:
    """A selection and its parents. Raises InputError if the parents are no longer the newest ones."""
    manifest = load_manifest(folder)
    by_hash: dict[str, str] = {}
    signals = {}
    for step in ("raw", "dedupe", "signals"):
        for url in storage.list_files(storage.join(root, step)):
            newest = latest_folder(root, step, storage.name_of(url))
            if newest is None or not is_complete(newest):
                continue
            found = load_manifest(newest)
            by_hash[found.hash()] = newest
            if step == "signals" and found.parents[0] == manifest.parents[0]:
                signals[storage.name_of(url)] = newest
    if not all(parent in by_hash for parent in manifest.parents[:2]):
        raise InputError(
            f"{folder}: its raw shards or its dedupe are no longer the newest; run `pairloom curate` again"
        )
    raw_folder, dedupe_folder = (by_hash[parent] for parent in manifest.parents[:2])
    raw = load_manifest(raw_folder)
    shards = sorted(raw.shards, key=lambda shard: hashlib.sha256(shard.name.encode()).digest())[:MAX_SHARDS]
    ordered = tuple(sorted(shards, key=lambda shard: shard.name))
    return Selected(root, folder, manifest, raw_folder, raw, dedupe_folder, signals, ordered)


def funnel(selected: Selected) -> list[tuple[str, int]]:
    """(name, remaining samples) after each step, from the drop counts of the selection."""
    reasons = Counter(selected.manifest.drop_counts)
    with_image = selected.raw.num_samples
    of_dedupe = set(load_manifest(selected.dedupe_folder).drop_counts)
    num_unique = with_image - sum(count for reason, count in reasons.items() if reason in of_dedupe)
    steps = [("rows in", selected.raw.num_rows), ("with an image", with_image), ("no duplicates", num_unique)]
    if reasons["balanced"]:
        steps.append(("rules passed", selected.manifest.num_samples + reasons["balanced"]))
    return [*steps, ("selected", selected.manifest.num_samples)]


def drop_reasons(selected: Selected) -> list[tuple[str, int]]:
    """(drop reason, rows), most frequent first; then kept rows and the sum."""
    counts = sorted(selected.manifest.drop_counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [*counts, ("kept", selected.manifest.num_samples), ("rows in", selected.manifest.num_rows)]


def joined_table(selected: Selected, shard: ShardEntry) -> pa.Table:
    """Decision, url and caption of each row of one shard, and all measured columns as `<signal>.<column>`."""
    raw = read_table(table_url(selected.raw_folder, shard.name), ["uid", "url", "caption", "status", "width", "height"])
    table = read_table(table_url(selected.folder, shard.name), ["kept", "drop_reason"])
    check_joined(raw, table, selected.folder)
    for name in raw.column_names:
        table = table.append_column(name, raw[name])
    for signal, folder in selected.signals.items():
        measured = read_table(table_url(folder, shard.name))
        check_joined(raw, measured, folder)
        for name in measured.column_names:
            if name not in _NO_MEASURE:
                table = table.append_column(f"{signal}.{name}", measured[name])
    return table


def histograms(table: pa.Table) -> dict[str, dict[str, Numbers]]:
    """Per numeric column: its finite values of kept samples, and of dropped samples with an image."""
    kept = np.asarray(table["kept"], bool)
    has_image = np.asarray(pc.equal(table["status"], STATUS_SUCCESS), bool)
    found = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            continue
        values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        is_finite = np.isfinite(values)
        found[name] = {"kept": values[kept & is_finite], "dropped": values[~kept & has_image & is_finite]}
    return {name: groups for name, groups in found.items() if any(len(group) for group in groups.values())}


def languages(table: pa.Table) -> list[tuple[str, int, int]]:
    """(language, samples, kept samples), most common first."""
    columns = [name for name in table.column_names if name.endswith(".language")]
    return _shares(table, table[columns[0]].to_pylist()) if columns else []


def domains(table: pa.Table) -> list[tuple[str, int, int]]:
    """(host of the URL, samples, kept samples), most common first; empty without URLs."""
    hosts = [urlsplit(url).hostname if url else None for url in _urls(table)]
    return _shares(table, hosts) if any(hosts) else []


def _urls(table: pa.Table) -> list[str | None]:
    urls: list[str | None] = []
    for url in table["url"].to_pylist():
        try:
            urlsplit(url or "").hostname  # noqa: B018  raises for a broken port or address
        except ValueError:
            url = None
        urls.append(url)
    return urls


def _shares(table: pa.Table, values: Sequence[str | None]) -> list[tuple[str, int, int]]:
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for value, is_kept, status in zip(values, table["kept"].to_pylist(), table["status"].to_pylist(), strict=True):
        if status == STATUS_SUCCESS:
            seen[value or "unknown"] += 1
            kept[value or "unknown"] += is_kept
    return [(value, count, kept[value]) for value, count in seen.most_common(TOP)]


_FIXED_RULES = {"num_words": "min_words", "num_chars": "min_chars"}  # column of a captions signal -> rule


def marks_of(selected: Selected, column: str) -> list[float]:
    """The thresholds of the rules on a column."""
    details: Any = selected.manifest.details
    found = [rule for rule in details["thresholds"] if f"{rule['signal']}.{rule['column']}" == column]
    ends = [end for rule in found for end in (rule["threshold"], rule["max"])]
    ends.append(details["rules"].get(_FIXED_RULES.get(column.rpartition(".")[2], "")))
    return [end for end in ends if end is not None]
