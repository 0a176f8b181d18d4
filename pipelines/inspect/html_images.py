"""Images of a report: random samples per drop reason, and the largest duplicate groups and clusters."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import cv2
import pyarrow.compute as pc

from pairloom.pipelines.inspect.html_numbers import Selected
from pairloom.schemas.data_set.manifest import ShardEntry, entry_of_table, load_manifest, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import decode_rgb

SIDE = 160  # px; longer side of a thumbnail
PER_REASON = 8  # samples per drop reason
NUM_GROUPS = 12
NUM_CLUSTERS = 15
PER_GROUP = 8  # shown members per group
GIANT = 1000  # members; a larger component is probably a chain or a placeholder
MAX_CAPTION_CHARS = 160

Row = dict[str, Any]


def sample_rows(selected: Selected) -> dict[str, list[Row]]:
    """Random rows per drop reason, and kept rows; a function of the uids."""
    chosen: dict[str, list[tuple[bytes, Row]]] = defaultdict(list)
    for shard in selected.shards:
        table = read_table(table_url(selected.folder, shard.name), ["uid", "kept", "drop_reason"])
        reasons = pc.fill_null(table["drop_reason"], "kept")
        for reason in pc.unique(reasons).to_pylist():
            rows = pc.indices_nonzero(pc.equal(reasons, reason)).to_pylist()
            drawn = sorted((_draw(table["uid"][row].as_py(), row), row) for row in rows)[:PER_REASON]
            best = [*chosen[reason], *((draw, {"shard": shard, "row": row}) for draw, row in drawn)]
            chosen[reason] = sorted(best, key=lambda pair: pair[0])[:PER_REASON]
    ordered = sorted(chosen, key=lambda reason: (reason != "kept", reason))
    return {reason: [row for _, row in chosen[reason]] for reason in ordered}


def _draw(uid: str, row: int) -> bytes:
    return hashlib.sha256(f"{uid}\0{row}".encode()).digest()


def duplicate_groups(selected: Selected) -> list[tuple[int, list[Row]]]:
    """The largest duplicate groups: number of members, and the first members."""
    members: dict[str, list[Row]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for shard in selected.shards:
        table = read_table(table_url(selected.dedupe_folder, shard.name), ["duplicate_group"])
        counts = pc.value_counts(table["duplicate_group"].combine_chunks()).to_pylist()
        for count in counts:
            if count["values"] is not None:
                sizes[count["values"]] += count["counts"]
    largest = [group for group in sorted(sizes, key=lambda group: (-sizes[group], group)) if sizes[group] > 1]
    wanted = set(largest[:NUM_GROUPS])
    for shard in selected.shards:
        table = read_table(table_url(selected.dedupe_folder, shard.name), ["duplicate_group", "drop_reason"])
        for row, (group, reason) in enumerate(
            zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        ):
            if group in wanted:
                members[group].append({"shard": shard, "row": row, "is_dropped": reason is not None})
                if len(members[group]) > 2 * PER_GROUP:
                    members[group] = _kept_first(members[group])
    return [(sizes[group], _kept_first(members[group])) for group in largest[:NUM_GROUPS]]


def _kept_first(rows: list[Row]) -> list[Row]:
    """The shown members of a group: kept ones first."""
    return sorted(rows, key=lambda row: row["is_dropped"])[:PER_GROUP]


@dataclass
class Cluster:
    """One cluster of a report."""

    number: int
    num_samples: int
    num_kept: int
    rows: list[Row]  # random kept samples


def largest_clusters(selected: Selected) -> tuple[int, list[Cluster]]:
    """The number of non-empty clusters, and the largest ones; (0, []) without a clusters signal."""
    folders = [folder for folder in selected.signals.values() if "num_clusters" in load_manifest(folder).details]
    if not folders:
        return 0, []
    seen: Counter[int] = Counter()
    kept: Counter[int] = Counter()
    drawn: dict[int, list[tuple[bytes, str, Row]]] = defaultdict(list)
    for shard in selected.shards:
        clusters = read_table(table_url(folders[0], shard.name), ["cluster"])["cluster"].to_pylist()
        table = read_table(table_url(selected.folder, shard.name), ["uid", "kept"])
        seen.update(cluster for cluster in clusters if cluster is not None)
        for row in pc.indices_nonzero(table["kept"]).to_pylist():
            if (cluster := clusters[row]) is not None:
                kept[cluster] += 1
                uid = table["uid"][row].as_py()
                drawn[cluster].append((_draw(uid, row), uid, {"shard": shard, "row": row}))
                if len(drawn[cluster]) > 4 * PER_REASON:
                    drawn[cluster] = sorted(drawn[cluster], key=lambda one: one[:2])[:PER_REASON]
    order = sorted(seen, key=lambda cluster: (-seen[cluster], cluster))[:NUM_CLUSTERS]
    return len(seen), [
        Cluster(
            cluster,
            seen[cluster],
            kept[cluster],
            [row for *_, row in sorted(drawn[cluster], key=lambda one: one[:2])[:PER_REASON]],
        )
        for cluster in order
    ]


class Album:
    """Makes cards of rows for the page: thumbnail, caption, note."""

    def __init__(self, selected: Selected) -> None:
        self._selected = selected
        self._tables: dict[str, list[Row]] = {}
        self._entries: dict[str, ShardEntry] = {}
        self._readers: dict[str, ShardReader] = {}

    def card(self, position: Row) -> dict[str, str]:
        """The card of one sample (`shard`, `row`). Without an image it has the URL and the error message."""
        shard: ShardEntry = position["shard"]
        row = self._rows(shard)[position["row"]]
        image = self._thumbnail(shard, row) if row["status"] == STATUS_SUCCESS else ""
        caption = (row["caption"] or "")[:MAX_CAPTION_CHARS]
        note = f"{row['width']} x {row['height']}" if image else (row["error_message"] or "")
        return {"uid": row["uid"], "image": image, "caption": caption, "url": row["url"] or "", "note": note,
                "reason": row["reason"] or "kept"}  # fmt: skip

    def _rows(self, shard: ShardEntry) -> list[Row]:
        if shard.name not in self._tables:
            names = ["uid", "url", "caption", "status", "error_message", "width", "height", "offset", "num_bytes"]
            table = read_table(table_url(self._selected.raw_folder, shard.name), names)
            self._entries[shard.name] = entry_of_table(table, shard)
            decisions = read_table(table_url(self._selected.folder, shard.name), ["drop_reason"])
            self._tables[shard.name] = table.append_column("reason", decisions["drop_reason"]).to_pylist()
        return self._tables[shard.name]

    def _thumbnail(self, shard: ShardEntry, row: Row) -> str:
        if shard.name not in self._readers:
            self._readers[shard.name] = ShardReader(tar_url(self._selected.raw_folder, self._entries[shard.name]))
        try:
            pixels = decode_rgb(self._readers[shard.name].read(row["offset"], row["num_bytes"]))
        except SampleError:
            return ""
        scale = min(1.0, SIDE / max(pixels.shape[:2]))
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"

    def close(self) -> None:
        """Close the tars."""
        for reader in self._readers.values():
            reader.close()
