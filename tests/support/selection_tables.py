"""Raw, dedupe and signal tables whose rows a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pairloom.pipelines.select.select import inputs_of, select
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, save_manifest, table_url
from pairloom.schemas.data_set.tables import DEDUPE, SAMPLE, read_table, write_table
from pairloom.schemas.recipes.curate import CurateRecipe

CAPTIONS = {
    "num_words": pa.int32(), "num_chars": pa.int32(), "language": pa.string(), "language_score": pa.float32(),
    "non_word_share": pa.float32(), "junk": pa.float32(),
}  # fmt: skip


GOOD = {
    "status": "success", "original_width": 400, "original_height": 300, "num_words": 5, "num_chars": 30,
    "language": "en", "language_score": 0.9, "clip_score": 0.3, "non_word_share": 0.0, "junk": 0.0,
}  # fmt: skip


class Tables:
    """Raw, dedupe and signal folders with the rows of a test."""

    def __init__(self, root: Path, rows: Sequence[dict[str, Any]], rows_per_shard: int = 4) -> None:
        self.root = root
        self.rows = [{"uid": f"{place:032x}", **GOOD, **row} for place, row in enumerate(rows)]
        self.rows_per_shard = rows_per_shard
        renamed = [{**row, "drop_reason": row.get("dedupe_reason")} for row in self.rows]
        uid = pa.field("uid", pa.string())
        self.raw = self._write("raw", SAMPLE, self.rows)
        self.dedupe = self._write("dedupe", DEDUPE, renamed)
        self.captions = self._write("captions", pa.schema([uid, *CAPTIONS.items()]), self.rows)
        self.clip = self._write("clip", pa.schema([uid, ("clip_score", pa.float32())]), self.rows)
        near = pa.schema([uid, ("cluster", pa.int32()), ("near_target", pa.float32())])
        self.tree = self._write("tree", near, self.rows)
        listed = [{"uid": row["uid"], "score": row.get("in_list")} for row in self.rows]
        self.words = self._write("words", pa.schema([uid, ("score", pa.float32())]), listed)

    def _write(self, step: str, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> str:
        folder = str(self.root / step)
        entries = []
        for index, start in enumerate(range(0, len(rows), self.rows_per_shard)):
            part = [{name: row.get(name) for name in schema.names} for row in rows[start : start + self.rows_per_shard]]
            name = f"0000/{index:07d}"
            write_table(table_url(folder, name), pa.Table.from_pylist(part, schema=schema))
            entries.append(ShardEntry(name, len(part), len(part), 0))
        save_manifest(folder, Manifest(step, step, "0" * 64, [], entries))
        return folder

    def recipe(self, **rules: Any) -> CurateRecipe:
        return CurateRecipe.model_validate(
            {
                "root": str(self.root),
                "source": {"kind": "folder", "path": "unused"},
                "signals": [
                    {"kind": "captions"},
                    {"kind": "clip", "name": "clip", "model": "unused"},
                    {"kind": "clusters", "name": "tree", "features": "clip", "num_clusters": [2]},
                    {"kind": "word_list", "name": "words", "entries": "unused"},
                ],
                "select": rules,
            }
        )

    def signals(self) -> dict[str, str]:
        return {"captions": self.captions, "clip": self.clip, "tree": self.tree, "words": self.words}

    def select(self, **rules: Any) -> str:
        recipe = self.recipe(**rules)
        return select(recipe, inputs_of(recipe, self.raw, self.signals(), self.dedupe))

    def reasons(self, **rules: Any) -> list[str | None]:
        return [row["drop_reason"] for row in decisions_of(self.select(**rules))]


def decisions_of(folder: str) -> list[dict[str, Any]]:
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    return [row for table in tables for row in table.to_pylist()]


BASIC = {"min_words": 3, "min_chars": 6, "min_side": 200, "max_aspect_ratio": 3.0, "languages": ["en"]}
