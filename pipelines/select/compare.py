"""Compare two selections of the same raw shards: changed rules, and changed samples by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairloom.schemas.data_set.manifest import count_reasons, load_manifest, table_url
from pairloom.schemas.data_set.tables import check_joined, read_table
from pairloom.schemas.errors import InputError

NUM_THREADS = 8


def difference(before_folder: str, after_folder: str) -> dict[str, Any]:
    """The difference between two selections of the same raw shards. Raises InputError.

    `rules`: changed rules, before and after; `newly_dropped`: samples that only the first keeps, by the reason in the
    second; `newly_kept`: samples that only the second keeps, by the reason in the first.
    """
    before, after = load_manifest(before_folder), load_manifest(after_folder)
    if before.parents[0] != after.parents[0]:
        raise InputError(
            f"{before_folder} and {after_folder}: different raw shards; compare selections of the same ones"
        )
    names = [shard.name for shard in after.shards]
    dropped: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for newly_dropped, newly_kept in pool.map(partial(_changes, before_folder, after_folder), names):
            dropped += newly_dropped
            kept += newly_kept
    old, new = dict(_flat(before.details)), dict(_flat(after.details))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {
        "before": before_folder,
        "kept_before": before.num_samples,
        "kept_after": after.num_samples,
        "kept_by_both": after.num_samples - kept.total(),
        "newly_dropped": dict(dropped.most_common()),
        "newly_kept": dict(kept.most_common()),
        "rules": {key: {"before": old.get(key), "after": new.get(key)} for key in changed},
    }


def _changes(before_folder: str, after_folder: str, name: str) -> tuple[Counter[str], Counter[str]]:
    """Newly dropped and newly kept samples of one shard, by reason."""
    columns = ["kept", "drop_reason"]
    before, after = (read_table(table_url(folder, name), columns) for folder in (before_folder, after_folder))
    check_joined(before, after, f"{after_folder}: {name}")
    return _reasons(after, before["kept"]), _reasons(before, after["kept"])


def _reasons(table: pa.Table, kept_elsewhere: pa.ChunkedArray) -> Counter[str]:
    """Reasons of the rows that only the other selection keeps."""
    return count_reasons(table["drop_reason"].filter(pc.and_not(kept_elsewhere, table["kept"])))


def _flat(details: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The rules of a selection with short names: `min_words`, `clip_b32.clip_score min`, `balance.t`."""
    yield from details["rules"].items()
    for rule in details["thresholds"]:
        for end, value in (("min", rule["threshold"]), ("max", rule["max"])):
            if value is not None:
                yield f"{rule['signal']}.{rule['column']} {end}", value
    for key, value in details.get("balance", {}).items():
        yield f"balance.{key}", value
