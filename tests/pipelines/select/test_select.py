"""Select: rules in order, DataComp's threshold, a decision per row, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairloom.pipelines.select.compare import difference
from pairloom.pipelines.select.rules import top_fraction_threshold
from pairloom.pipelines.select.select import inputs_of, select, select_folder
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.errors import InputError
from tests.support.selection_tables import BASIC, Tables, decisions_of


def test_each_rule_gives_its_reason_and_the_first_one_wins(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"status": "dropped", "drop_reason": "timeout", "num_words": None, "original_width": None, "clip_score": None},
        {"dedupe_reason": "exact_duplicate", "num_words": 1},
        {"num_words": 2, "num_chars": 3},
        {"num_chars": 5, "original_width": 10},
        {"original_height": 199, "language": "de"},
        {"original_width": 901, "language": "de"},
        {"original_width": 900, "language": "de"},
        {"language": None},
        {"clip_score": 0.1},
        {"clip_score": None},
    ]
    tables = Tables(tmp_path, rows)
    rules = {**BASIC, "scores": [{"signal": "clip", "min": 0.28}]}
    assert tables.reasons(**rules) == [
        None, "timeout", "exact_duplicate", "few_words", "few_chars", "too_small", "aspect_ratio", "language",
        "language", "low_score", "low_score"]  # fmt: skip
    manifest = load_manifest(tables.select(**rules))
    assert (manifest.num_rows, manifest.num_samples) == (11, 1)
    assert manifest.drop_counts == {
        "timeout": 1, "exact_duplicate": 1, "few_words": 1, "few_chars": 1, "too_small": 1, "aspect_ratio": 1,
        "language": 2, "low_score": 2}  # fmt: skip


def test_the_values_that_decided_lie_beside_the_decision(tmp_path: Path) -> None:
    row = decisions_of(Tables(tmp_path, [{"clip_score": 0.5}]).select(**BASIC, scores=[{"signal": "clip", "min": 0}]))[
        0
    ]
    assert row["clip.clip_score"] == 0.5
    assert (row["num_words"], row["language"], row["original_width"]) == (5, "en", 400)
    assert (row["kept"], row["weight"]) == (True, 1.0)


def test_without_rules_all_that_is_no_duplicate_is_kept(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [{"num_words": 0, "original_width": 1}, {"dedupe_reason": "perceptual_duplicate"}])
    assert tables.reasons() == [None, "perceptual_duplicate"]


# ---- thresholds


def datacomp_threshold(scores: np.ndarray[Any, Any], fraction: float) -> float:
    """DataComp, baselines/utils.py: the n-th score in descending order, counted from 0."""
    return float(-np.sort(-scores)[int(len(scores) * fraction)])


@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.3, 0.3333, 0.5, 0.99])
def test_threshold_is_datacomps(fraction: float) -> None:
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32).round(2)  # rounding makes ties
    assert top_fraction_threshold(scores, fraction) == datacomp_threshold(scores, fraction)


def test_threshold_of_everything_and_of_nothing() -> None:
    assert top_fraction_threshold(np.array([3, 1, 2], np.float32), 1.0) == 1.0
    assert top_fraction_threshold(np.empty(0, np.float32), 0.3) == float("inf")


def test_ties_with_the_threshold_stay(tmp_path: Path) -> None:
    scores = [0.9, 0.5, 0.5, 0.5, 0.1, 0.0]
    tables = Tables(tmp_path, [{"clip_score": score} for score in scores])
    reasons = tables.reasons(scores=[{"signal": "clip", "top_fraction": 0.3}])
    assert [reason is None for reason in reasons] == [True, True, True, True, False, False]


def test_top_fraction_counts_samples_that_pass_previous_rules(tmp_path: Path) -> None:
    rows = [{"clip_score": place / 100, "num_words": 1 if place >= 50 else 5} for place in range(100)]
    tables = Tables(tmp_path, rows, rows_per_shard=9)
    folder = tables.select(min_words=3, scores=[{"signal": "clip", "top_fraction": 0.5}])
    kept = [place for place, row in enumerate(decisions_of(folder)) if row["kept"]]
    assert kept == list(range(24, 50))  # rank 25 of 50, counted from 0, is 24
    assert load_manifest(folder).details["thresholds"] == [
        {"signal": "clip", "column": "clip_score", "threshold": pytest.approx(0.24), "max": None}
    ]


def test_one_score_rule_after_the_other(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [{"clip_score": place / 10} for place in range(10)])
    rules = [{"signal": "clip", "min": 0.35}, {"signal": "clip", "top_fraction": 0.5}]
    kept = [place for place, reason in enumerate(tables.reasons(scores=rules)) if reason is None]
    assert kept == [6, 7, 8, 9]  # six pass the first rule; rank 3 of them is 0.6


def test_any_column_of_a_signal_can_be_bounded(tmp_path: Path) -> None:
    shares = [0.0, 0.5, 0.51, 1.0, None]
    tables = Tables(tmp_path, [{"non_word_share": share} for share in shares])
    rule = {"signal": "captions", "column": "non_word_share"}
    assert tables.reasons(scores=[{**rule, "max": 0.5}]) == [None, None, "high_score", "high_score", "low_score"]
    assert tables.reasons(scores=[{**rule, "min": 0.4, "max": 0.6}]) == [
        "low_score", None, None, "high_score", "low_score"]  # fmt: skip
    with pytest.raises(ValueError, match="set the column of captions to one of num_words, num_chars, language_score"):
        tables.recipe(scores=[{"signal": "captions", "min": 0.4}])


# ---- folders


def test_changed_threshold_makes_a_new_folder_and_reports_the_difference(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [{"clip_score": place / 10} for place in range(10)])
    loose = tables.select(scores=[{"signal": "clip", "min": 0.2}])
    strict = tables.select(scores=[{"signal": "clip", "min": 0.5}])
    assert loose != strict
    assert difference(loose, strict) == {
        "before": loose, "kept_before": 8, "kept_after": 5, "kept_by_both": 5,
        "newly_dropped": {"low_score": 3}, "newly_kept": {},
        "rules": {"clip.clip_score min": {"before": 0.2, "after": 0.5}},
    }  # fmt: skip
    words = tables.select(name="words", min_words=6)
    assert difference(strict, words)["newly_dropped"] == {"few_words": 5}
    assert difference(words, strict)["newly_kept"] == {"few_words": 5}
    assert (tmp_path / "selections/default/LATEST").read_text().strip() == Path(strict).name
    assert tables.select(scores=[{"signal": "clip", "min": 0.2}]) == loose
    assert (tmp_path / "selections/default/LATEST").read_text().strip() == Path(loose).name


def test_only_signals_that_a_rule_looks_at_name_the_folder(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [{}])
    recipe = tables.recipe(min_side=10)
    without = select_folder(recipe, inputs_of(recipe, tables.raw, {}, tables.dedupe))
    assert select_folder(recipe, inputs_of(recipe, tables.raw, tables.signals(), tables.dedupe)) == without


def test_tables_of_other_rows_are_refused(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [{}, {}])
    other = Tables(tmp_path / "other", [{"uid": "f" * 32}, {}])
    with pytest.raises(InputError, match="tables of different rows"):
        select(tables.recipe(), inputs_of(tables.recipe(), tables.raw, tables.signals(), other.dedupe))
