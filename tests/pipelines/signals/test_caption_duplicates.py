"""caption_duplicates: counts of equal and near captions over the whole data set, against exact similarities."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pairloom.pipelines.algorithms.captions import normalise_caption
from pairloom.pipelines.algorithms.minhash import num_equal_slots, signatures
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.engine.batches import BatchLimits
from pairloom.pipelines.inspect.inspect import explain
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.caption_duplicates import CaptionDuplicateSignals
from pairloom.pipelines.signals.caption_duplicates_rounds import CaptionLimits
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.signals import Signal
from tests.support.dedupe_builder import SEED, decisions_of, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph

TEXT = "red blue small large old new wooden steel house car dog cat tree river hill road near behind above under with"
WORDS = TEXT.split()


def similarity(one: str, other: str) -> float:
    left, right = ({text[start : start + 4] for start in range(max(1, len(text) - 3))} for text in (one, other))
    return len(left & right) / len(left | right)


def captions_with_neighbours(num: int = 150) -> list[str]:
    """Sentences, and copies with a changed word, a punctuation mark or another case."""
    generator = np.random.default_rng(SEED)
    texts = [" ".join(generator.choice(WORDS, generator.integers(6, 16))) for _ in range(num)]
    for text in texts[: num // 2]:
        words = text.split()
        words[generator.integers(0, len(words))] = str(generator.choice(WORDS))
        texts += [" ".join(words), text.upper() + " ", f"{text}!"]
    return texts


def recipe_for(root: Path, **select_settings: Any) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "caption_duplicates"}],
            "dedupe": {"perceptual": None},
            "select": select_settings,
        }
    )


def test_signatures_estimate_the_similarity_of_4_grams() -> None:
    texts = [normalise_caption(text) for text in captions_with_neighbours()]
    pairs = list(combinations(range(len(texts)), 2))
    signed = signatures(texts)
    left, right = np.array(pairs).T
    estimate = num_equal_slots(signed[left], signed[right]) / 128
    error = estimate - np.array([similarity(texts[one], texts[other]) for one, other in pairs])
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.04
    assert (signatures(["", "a", "\U0001f600", "a", "abc"]) == signatures(["", "a", "\U0001f600", "a", "abc"])).all()


class SmallTasks(CaptionDuplicateSignals):
    """The signal with many small tasks."""

    limits: ClassVar[CaptionLimits] = CaptionLimits(37, BatchLimits(min_batches=6, min_rows=30))


def measured(
    root: Path, pairs: list[Pair], samples_per_shard: int, kind: type[Signal] = CaptionDuplicateSignals
) -> dict[str, dict[str, Any]]:
    recipe = recipe_for(root)
    signal = kind.model_validate(recipe.signals[0].model_dump())
    folder = measure_signal(recipe, signal, build_raw(root, pairs, samples_per_shard), None)
    assert not list(Path(folder).rglob("*.rows"))
    return decisions_of(folder)


def test_near_captions_are_found_and_counted_in_any_order(tmp_path: Path, ray_session: None) -> None:
    texts = captions_with_neighbours()
    image = encoded(photograph(1))
    pairs = [Pair(image, text, f"http://a.test/{place}") for place, text in enumerate(texts)]
    pairs.append(Pair(DropReason.HTTP_NOT_FOUND, texts[0], "http://a.test/gone"))
    one = measured(tmp_path / "one", pairs, 1000)
    shuffled = [pairs[place] for place in np.random.default_rng(SEED).permutation(len(pairs))]
    assert measured(tmp_path / "other", shuffled, 37) == one
    assert set(one[uid_of(pairs[-1])].values()) == {uid_of(pairs[-1]), None}

    normalised = [normalise_caption(text) for text in texts]
    rows = [one[uid_of(pair)] for pair in pairs[:-1]]
    equal = Counter(normalised)
    assert [row["num_equal_captions"] for row in rows] == [equal[text] for text in normalised]
    sizes = Counter(row["caption_group"] for row in rows)
    assert [row["num_near_captions"] for row in rows] == [sizes[row["caption_group"]] for row in rows]
    alike, found, joined = 0, 0, 0
    for left, right in combinations(range(len(texts)), 2):
        is_joined = rows[left]["caption_group"] == rows[right]["caption_group"]
        near = similarity(normalised[left], normalised[right])
        alike, found = alike + (near >= 0.85), found + (near >= 0.85 and is_joined)
        joined += is_joined and near < 0.5
    assert found / alike >= 0.98, (found, alike)
    assert joined == 0


def test_parts_and_batches_change_nothing(tmp_path: Path, ray_session: None) -> None:
    """Every round has several tasks, and the next run finishes a killed one."""
    image = encoded(photograph(1))
    texts = captions_with_neighbours(60)
    pairs = [Pair(image, text, f"http://a.test/{place}") for place, text in enumerate([*texts, *texts[:20]])]
    one = measured(tmp_path / "one", pairs, 1000)
    assert measured(tmp_path / "many", pairs, 17, SmallTasks) == one
    (folder,) = (tmp_path / "many" / "signals").rglob("manifest.json")
    folder.unlink()
    (folder.parent / "0000" / "0000001.parquet").unlink()
    (folder.parent / "spill" / "words").mkdir(parents=True)
    (folder.parent / "spill" / "words" / "0000000.rows").write_bytes(b"half")
    kept = (folder.parent / "0000" / "0000002.parquet").stat().st_mtime_ns
    assert measured(tmp_path / "many", pairs, 17, SmallTasks) == one
    assert (folder.parent / "0000" / "0000002.parquet").stat().st_mtime_ns == kept


def test_selections_and_explain_use_the_counts_and_dedupe_does_not(tmp_path: Path, ray_session: None) -> None:
    common = [f"buy this wonderful picture of a thing at our shop today {place % 3}" for place in range(9)]
    texts = [*common, "a dog on a hill", "an old house near the river"]
    pairs = [Pair(encoded(photograph(place)), text, f"http://a.test/{place}") for place, text in enumerate(texts)]
    recipe = recipe_for(tmp_path, scores=[{"signal": "caption_duplicates", "column": "num_near_captions", "max": 5}])
    raw = build_raw(tmp_path, pairs, 4)
    folder = dedupe(recipe, raw, {})
    assert load_manifest(folder).drop_counts == {}  # equal captions of other pictures delete nothing
    signals = {"caption_duplicates": measure_signal(recipe, recipe.signals[0], raw, None)}
    selection = select(recipe, inputs_of(recipe, raw, signals, folder))
    kept = [uid for uid, row in decisions_of(selection).items() if row["kept"]]
    assert sorted(kept) == sorted(uid_of(pair) for pair in pairs[9:])
    told = explain(str(tmp_path), uid_of(pairs[0]))
    assert told["selections/default"]["drop_reason"] == "high_score"
    assert told["signals/caption_duplicates"]["num_near_captions"] == 9


def test_a_new_shard_counts_in_all_others(tmp_path: Path, ray_session: None) -> None:
    """Counts are over the whole data set, so that columns of an earlier generation must not be reused."""
    image = encoded(photograph(1))
    pairs = [Pair(image, "the same words", f"http://a.test/{place}") for place in range(6)]
    small, large = measured(tmp_path / "small", pairs[:3], 3), measured(tmp_path / "large", pairs, 3)
    assert {row["num_equal_captions"] for row in small.values()} == {3}
    assert {row["num_equal_captions"] for row in large.values()} == {6}
    with pytest.raises(ValueError, match="threshold"):
        CurateRecipe.model_validate(
            {"root": "x", "source": {"kind": "folder", "path": "x"},
             "signals": [{"kind": "caption_duplicates", "threshold": 0.5}]}
        )  # fmt: skip
