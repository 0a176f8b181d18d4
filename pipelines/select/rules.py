"""The rules of a selection, as pure functions of columns.

The first rule that a row fails gives the reason, in this order: ingest, dedupe, subset, num_words, num_chars, size,
aspect ratio, language, the score rules in the recipe's order, and balancing last. A `top_fraction` is a share of the
samples that pass all previous rules; its threshold is DataComp's: the score at descending rank floor(N f), counted from
0; ties are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.raw.row_uids import pack_uids
from pairloom.pipelines.select.datacomp_subset import is_member, read_subset
from pairloom.schemas.data_set.tables import STATUS_SUCCESS
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe, ScoreRule, SelectRecipe

Mask = npt.NDArray[np.bool_]
_REASONS = [reason.value for reason in DropReason]
_CODES = {reason: code for code, reason in enumerate(_REASONS)}
_KEPT = -1


class Verdicts:
    """The drop_reason of each row of one table: that of the first rule that the row fails."""

    def __init__(self, table: pa.Table) -> None:
        reasons = pc.coalesce(table["drop_reason"], table["dedupe_reason"])
        given = pc.index_in(reasons, pa.array(_REASONS))
        if given.null_count != reasons.null_count:
            raise InputError("a table has an unknown drop reason; use the version of pairloom that wrote it")
        self._codes = given.fill_null(_KEPT).to_numpy().astype(np.int16)
        self.drop(DropReason.MISSING_IMAGE, np.asarray(pc.not_equal(table["status"], STATUS_SUCCESS), bool))

    @property
    def passing(self) -> Mask:
        """Whether each row has passed all rules so far."""
        return np.asarray(self._codes == _KEPT)

    def drop(self, reason: DropReason, fails: Mask) -> None:
        """Drop the rows in `fails` that no earlier rule has dropped."""
        self._codes[fails & self.passing] = _CODES[reason.value]

    def reasons(self) -> pa.StringArray:
        """The reason per row; null: kept."""
        codes = pa.array(self._codes, mask=self.passing)
        return pa.array(_REASONS, pa.string()).take(codes)


def decide(table: pa.Table, recipe: CurateRecipe, thresholds: Sequence[float]) -> Verdicts:
    """Apply all rules up to `len(thresholds)` score rules; `thresholds` are the lower bounds of these."""
    verdicts = Verdicts(table)
    for reason, fails in _fixed_rules(table, recipe.select):
        verdicts.drop(reason, fails)
    for rule, threshold in zip(recipe.select.scores, thresholds, strict=False):
        scores = table[score_column(recipe, rule)].to_numpy().astype(np.float64)  # nan: no score
        verdicts.drop(DropReason.LOW_SCORE, ~(scores >= threshold))
        if rule.max is not None:
            verdicts.drop(DropReason.HIGH_SCORE, ~(scores <= rule.max))
    return verdicts


def score_column(recipe: CurateRecipe, rule: ScoreRule) -> str:
    """The column name of a score rule in the joined table: `<signal>.<column>`."""
    return f"{rule.signal}.{recipe.column_of(rule)}"


def _fixed_rules(table: pa.Table, rules: SelectRecipe) -> Iterator[tuple[DropReason, Mask]]:
    """The active rules in order: (reason, whether each row fails)."""
    if rules.subset is not None:
        yield DropReason.NOT_IN_SUBSET, ~is_member(pack_uids(table["uid"].to_pylist()), read_subset(rules.subset))
    if rules.min_words:
        yield DropReason.FEW_WORDS, ~(_numbers(table["num_words"]) >= rules.min_words)
    if rules.min_chars:
        yield DropReason.FEW_CHARS, ~(_numbers(table["num_chars"]) >= rules.min_chars)
    width = _numbers(pc.coalesce(table["original_width"], table["width"]))
    height = _numbers(pc.coalesce(table["original_height"], table["height"]))
    short, long = np.minimum(width, height), np.maximum(width, height)
    if rules.min_side:
        yield DropReason.TOO_SMALL, ~(short >= rules.min_side)
    if rules.max_aspect_ratio is not None:
        yield DropReason.ASPECT_RATIO, ~(long <= rules.max_aspect_ratio * short)
    if rules.languages is not None:
        allowed = pa.array(rules.languages, pa.string())
        yield DropReason.LANGUAGE, ~np.asarray(pc.is_in(table["language"], allowed), dtype=bool)


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    """A column as float64; null becomes nan, with which every comparison fails."""
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def top_fraction_threshold(scores: npt.NDArray[np.float32], fraction: float) -> float:
    """The score at descending rank floor(N f), counted from 0 (DataComp's `get_threshold`); keep `score >= t`.

    Without any score: infinity, which keeps nothing.
    """
    if len(scores) == 0:
        return float("inf")
    rank = min(int(len(scores) * fraction), len(scores) - 1)
    return float(-np.partition(-scores, rank)[rank])
