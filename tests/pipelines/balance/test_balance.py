"""Balance: matches and probabilities equal MetaCLIP's, and the draw depends on seed and uid alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pairloom.pipelines.algorithms.seeded_hash import draws
from pairloom.pipelines.balance.balance import balance, balance_folder
from pairloom.pipelines.balance.draw import count_entries, keep_probabilities
from pairloom.pipelines.balance.entries import Matcher, choose_entries, count_words, load_entries
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.raw_builder import Pair, build_raw, photographs

ENTRIES = ["dog", "a dog", "dog park", "New York", "!", "café", "red", "red.", "cat", "a"]
CAPTIONS = [
    "a dog", "a dog in the dog park, New York!", "Dogs and cats", "dogs", "", "red. And red", "the café",
    "a\tdog\nin New\nYork", "café:red;cat?a", "DOG", "a a a a",
]  # fmt: skip


def reference_match(caption: str, entries: list[str]) -> list[int]:
    """MetaCLIP's definition, entry by entry."""
    text = f" {caption} "
    for mark in (",", ".", ";", ":", "?", "!", "`"):
        text = text.replace(mark, f" {mark} ")
    for space in ("\t", "\n", "\r"):
        text = text.replace(space, " ")
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


def matches_of(captions: list[str], entries: list[str]) -> list[list[int]]:
    rows, found = Matcher(entries).match(captions)
    return [found[rows == row].tolist() for row in range(len(captions))]


def test_matches_are_metaclips() -> None:
    assert matches_of(CAPTIONS, ENTRIES) == [reference_match(caption, ENTRIES) for caption in CAPTIONS]


def test_matches_of_random_captions_are_metaclips() -> None:
    draw = np.random.default_rng(0)
    words = ["sun", "sea", "sky", "sun sea", "a", "é", ",", "big", "!"]
    captions = [" ".join(draw.choice(words, draw.integers(0, 9))) for _ in range(2500)]  # more than one batch
    entries = ["sun", "sea sky", "sun sea", "a é", ", big", "sky sky sky", "!"]
    assert matches_of(captions, entries) == [reference_match(caption, entries) for caption in captions]


def test_probabilities_are_a_direct_count() -> None:
    draw = np.random.default_rng(1)
    lists = [sorted(set(draw.integers(0, 6, draw.integers(0, 5)).tolist())) for _ in range(200)]
    lists[3] = lists[199] = []
    rows = draw.random(200) < 0.7
    matches = pa.chunked_array([pa.array(lists[:90], pa.list_(pa.int32())), pa.array(lists[90:], pa.list_(pa.int32()))])
    counted = Counter(entry for kept, entries in zip(rows, lists, strict=True) if kept for entry in entries)
    counts = count_entries(matches, rows, 6)
    assert counts.tolist() == [counted[entry] for entry in range(6)]
    expected = [
        1 - np.prod([1 - min(1, 20 / counted[entry]) for entry in entries]) if entries else 0 for entries in lists
    ]
    np.testing.assert_allclose(keep_probabilities(matches, counts, 20), np.array(expected), rtol=1e-12)


def test_draws_are_even_and_hang_on_seed_and_uid_alone() -> None:
    uids = pack_uids([f"{number:032x}" for number in range(20_000)])
    drawn = draws(uids, 0)
    assert abs(drawn.mean() - 0.5) < 0.01
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(np.corrcoef(drawn, draws(uids, 1))[0, 1]) < 0.03
    np.testing.assert_array_equal(draws(uids[::-1], 0), drawn[::-1])
    assert [round(float(value), 6) for value in drawn[:3]] == [0.138709, 0.184367, 0.697453]  # for ever


def test_entries_of_captions_are_frequent_words_and_bound_pairs() -> None:
    captions = ["a dog in New York", "a cat in New York .", "a bird - in New York"] * 4 + ["a rare thing"]
    entries = choose_entries(*count_words(captions), min_count=4, min_information=2.0)
    assert "New York" in entries
    assert "dog" in entries
    assert "a" in entries
    assert not {"rare", "-", ".", "York .", "a rare"} & set(entries)


# ---- in the walk


def recipe_for(root: Path, **settings: Any) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "balance": {"kind": "metaclip", "t": 5, "min_count": 3, "min_information": 0.5, **settings},
        }
    )


def prepare(root: Path, samples_per_shard: int) -> str:
    """40 photographs of dogs, 6 of cats, and one without an entry."""
    pairs = photographs(47)
    captions = [*(f"a dog number {place}" for place in range(40)), *(f"the cat {place}" for place in range(6)), "?"]
    renamed = [Pair(pair.image, caption, pair.url) for pair, caption in zip(pairs, captions, strict=True)]
    return build_raw(root, [*renamed, Pair(DropReason.TIMEOUT, "a dog", "http://a.test/gone")], samples_per_shard)


def decisions(recipe: CurateRecipe, raw: str) -> dict[str, tuple[str | None, float]]:
    """uid -> drop reason and probability."""
    folder = select(recipe, inputs_of(recipe, raw, {}, dedupe(recipe, raw, {}), balance(recipe, raw)))
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["uid"]: (row["drop_reason"], row["balance_probability"]) for row in rows}


def test_common_entries_are_thinned_out_whatever_the_shards(tmp_path: Path, ray_session: None) -> None:
    entries = tmp_path / "entries.txt"
    entries.write_text("dog\n\ncat\ndog\nnever seen\n")
    one = decisions(recipe_for(tmp_path / "one", entries=str(entries)), prepare(tmp_path / "one", 100))
    many = decisions(recipe_for(tmp_path / "many", entries=str(entries)), prepare(tmp_path / "many", 7))
    assert one == many
    reasons = Counter(reason for reason, _ in one.values())
    assert reasons["timeout"] == 1
    dogs = [reason for reason, probability in one.values() if probability == np.float32(5 / 40) and reason != "timeout"]
    assert len(dogs) == 40
    assert 1 <= dogs.count(None) <= 12
    cats = [reason for reason, probability in one.values() if probability == np.float32(5 / 6)]
    assert len(cats) == 6
    assert cats.count(None) >= 3
    assert sum(probability == 0 and reason == "balanced" for reason, probability in one.values()) == 1


def test_another_t_needs_no_new_matches(tmp_path: Path, ray_session: None) -> None:
    raw = prepare(tmp_path, 20)
    strict, loose = recipe_for(tmp_path), recipe_for(tmp_path, t=1000)
    folder = balance(strict, raw)
    assert balance_folder(loose, raw).url == folder
    assert {"a dog", "dog", "the cat", "cat"} <= set(load_entries(f"{folder}/entries.txt"))
    kept_loose = {uid for uid, (reason, _) in decisions(loose, raw).items() if reason is None}
    kept_strict = {uid for uid, (reason, _) in decisions(strict, raw).items() if reason is None}
    assert kept_strict < kept_loose


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("\n \n", "is empty; write one entry per line")])
def test_a_list_that_cannot_be_used_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "entries.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_entries(str(path))
