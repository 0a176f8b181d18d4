"""table: scores of the user by uid or URL, in every format, joined to their rows and used by every rule."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairloom.pipelines.balance.thinning import plan_of
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.clusters import load_tree
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.signals.table import TableSignals
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import parse_recipe
from tests.support.dedupe_builder import decisions_of, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs

PAIRS = [*photographs(25), Pair(DropReason.HTTP_NOT_FOUND, "gone", "http://a.test/gone.jpg")]
SCORES = {
    uid_of(pair): (index * 7 % 25 / 10, index) for index, pair in enumerate(PAIRS[:25]) if index % 4
}  # some are missing


class ManyParts(TableSignals):
    """The same signal in many small tasks."""

    rows_per_part: ClassVar[int] = 4


def recipe_for(root: Path, table: Path | str, signal: dict[str, Any] | None = None, **parts: Any) -> CurateRecipe:
    given = {"kind": "table", "name": "mine", "path": str(table), "columns": ["score", "votes"], **(signal or {})}
    source = {"kind": "folder", "path": "unused"}
    return parse_recipe({"root": str(root), "source": source, "signals": [given], **parts}, CurateRecipe, "recipe")


def write_table(path: Path, by: str = "uid") -> Path:
    """The scores in the format of the name, in an order that has nothing to do with the shards."""
    urls = {uid_of(pair): pair.url for pair in PAIRS}
    keys = [uid if by == "uid" else urls[uid] for uid in SCORES]
    order = np.random.default_rng(0).permutation(len(keys))
    keys = [keys[index] for index in order] + ["f" * 32 if by == "uid" else "http://nowhere.test/"]
    values = [list(SCORES.values())[index] for index in order] + [(9.0, 9)]
    columns = {by: keys, "score": [score for score, _ in values], "votes": [votes for _, votes in values]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table({**columns, "other": ["x"] * len(keys)}), path, row_group_size=5)
    elif path.suffix == ".npy":
        kinds = [(by, "S64"), ("score", "f4"), ("votes", "i8")]
        np.save(path, np.array(list(zip(*columns.values(), strict=True)), kinds))
    else:
        lines = [
            ",".join(columns),
            *(f"{key},{score},{votes}" for key, score, votes in zip(*columns.values(), strict=True)),
        ]
        text = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("by", ["uid", "url"])
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.npy"])
def test_every_format_reaches_its_rows(tmp_path: Path, ray_session: None, name: str, by: str) -> None:
    recipe = recipe_for(tmp_path, write_table(tmp_path / name, by), {"by": by})
    folder = measure_signal(recipe, recipe.signals[0], build_raw(tmp_path, PAIRS, 4), None)
    rows = decisions_of(folder)
    assert len(rows) == len(PAIRS)
    for uid, row in rows.items():
        score, votes = SCORES.get(uid, (None, None))
        assert row["score"] == (None if score is None else pytest.approx(score, abs=1e-6))
        assert row["votes"] == votes
    details = load_manifest(folder).details
    assert (details["num_matched"], details["num_without_values"]) == (len(SCORES), 25 - len(SCORES))


def test_the_cut_of_the_work_never_shows(tmp_path: Path, ray_session: None) -> None:
    table = write_table(tmp_path / "t.parquet")
    found = []
    for kind, samples_per_shard in ((TableSignals, 100), (ManyParts, 3)):
        recipe = recipe_for(tmp_path / kind.__name__, table)
        signal = kind.model_validate(recipe.signals[0].model_dump())
        raw = build_raw(tmp_path / kind.__name__, PAIRS, samples_per_shard)
        found.append(decisions_of(measure_signal(recipe, signal, raw, None)))
    assert found[0] == found[1]


def test_score_rules_and_dedupe_use_the_columns(tmp_path: Path, ray_session: None) -> None:
    copies = [Pair(encoded(photograph(seed), quality=60), f"copy {seed}", f"http://b.test/{seed}") for seed in range(5)]
    pairs = [*photographs(10), *copies]
    table = tmp_path / "t.parquet"
    better = {uid_of(pair): float(index >= 10) for index, pair in enumerate(pairs)}
    pq.write_table(pa.table({"uid": list(better), "score": list(better.values()), "votes": range(15)}), table)
    keep = {"keep": "highest_score", "score_signal": "mine", "score_column": "score"}
    rules = {"scores": [{"signal": "mine", "column": "votes", "min": 6}]}
    recipe = recipe_for(tmp_path, table, dedupe=keep, select=rules)
    raw = build_raw(tmp_path, pairs, 4)
    folders = {"mine": measure_signal(recipe, recipe.signals[0], raw, None)}
    decided = dedupe(recipe, raw, folders)
    dropped = [row["drop_reason"] for row in map(decisions_of(decided).get, map(uid_of, pairs)) if row is not None]
    assert dropped == ["perceptual_duplicate"] * 5 + [None] * 10, "copies are kept, for their score is higher"
    selection = decisions_of(select(recipe, inputs_of(recipe, raw, folders, decided)))
    assert [selection[uid_of(pair)]["kept"] for pair in pairs] == [index >= 6 for index in range(15)]


def test_balance_uses_a_column_of_clusters(tmp_path: Path, ray_session: None) -> None:
    table = tmp_path / "t.parquet"
    clusters = {uid_of(pair): 0 if index < 20 else 1 + index % 2 for index, pair in enumerate(PAIRS[:25])}
    pq.write_table(pa.table({"uid": list(clusters), "cluster": list(clusters.values())}), table)
    balance = {"kind": "clusters", "clusters": "mine", "num_samples": 6}
    recipe = recipe_for(tmp_path, table, {"columns": ["cluster"]}, balance=balance)
    raw = build_raw(tmp_path, PAIRS, 4)
    folder = measure_signal(recipe, recipe.signals[0], raw, None)
    assert load_tree(folder).num_clusters == 3
    assert recipe.balance is not None
    assert plan_of(recipe.balance, folder) is not None
    decided = dedupe(recipe, raw, {"mine": folder})
    selection = decisions_of(select(recipe, inputs_of(recipe, raw, {"mine": folder}, decided, folder)))
    kept = [clusters[uid] for uid, row in selection.items() if row["kept"]]
    assert sorted(kept) == [0, 0, 1, 1, 2, 2]


def test_mistakes_are_one_line(tmp_path: Path, ray_session: None) -> None:
    raw = build_raw(tmp_path, PAIRS, 10)
    twice = tmp_path / "twice.csv"
    uid = uid_of(PAIRS[0])
    twice.write_text(f"uid,score,votes\n{uid},1,1\n{uid},2,1\n")
    words = tmp_path / "words.parquet"
    pq.write_table(pa.table({"uid": [uid], "score": ["high"], "votes": [1]}), words)
    no_uids = tmp_path / "no_uids.csv"
    no_uids.write_text("uid,score,votes\n17,1,1\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no table")
    for path, message in (
        (twice, f"uid {uid} is in the table twice with different values"),
        (words, "column score is string"),
        (no_uids, "not a uid of 32 hex digits"),
        (broken, "broken.parquet"),
        (tmp_path / "none.csv", "no table"),
    ):
        recipe = recipe_for(tmp_path, path)
        with pytest.raises(InputError, match=message) as caught:
            measure_signal(recipe, recipe.signals[0], raw, None)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no column votes"):
        (tmp_path / "few.csv").write_text(f"uid,score\n{uid},1\n")
        recipe = recipe_for(tmp_path, tmp_path / "few.csv")
        measure_signal(recipe, recipe.signals[0], raw, None)
    for signal, part, message in (
        ({"columns": []}, {}, "at least 1 item"),
        ({"columns": ["a", "a"]}, {}, "a column is listed twice"),
        ({}, {"select": {"scores": [{"signal": "mine", "min": 1}]}}, "score, votes"),
        ({}, {"balance": {"kind": "clusters", "clusters": "mine", "num_samples": 3}}, "mine is not a clusters signal"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe_for(tmp_path, "t.csv", signal, **part)
