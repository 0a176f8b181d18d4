"""The rules of a selection: which rows of a table fail which one. Pure functions of columns.

Rules in order, the first that fails gives the reason: ingest's own reason, dedupe's, the subset, num_words, num_chars,
size, aspect ratio, language, then the score rules one by one, and balancing last. A `top_fraction` is taken of the
samples that pass every rule before it; its threshold is DataComp's: the score at descending rank floor(N f), counted
from 0, and ties stay.
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
    """The drop_reason of each row of one table; the first rule that a row fails gives it."""

    def __init__(self, table: pa.Table) -> None:
        reasons = pc.coalesce(table["drop_reason"], table["dedupe_reason"])
        given = pc.index_in(reasons, pa.array(_REASONS))
        if given.null_count != reasons.null_count:
            raise InputError("a table gives a drop reason that this version does not know; use the one that wrote it")
        self._codes = given.fill_null(_KEPT).to_numpy().astype(np.int16)
        self.drop(DropReason.MISSING_IMAGE, np.asarray(pc.not_equal(table["status"], STATUS_SUCCESS), bool))

    @property
    def passing(self) -> Mask:
        """The rows that no rule has dropped so far."""
        return np.asarray(self._codes == _KEPT)

    def drop(self, reason: DropReason, fails: Mask) -> None:
        """Drop the rows that fail and that no earlier rule has dropped."""
        self._codes[fails & self.passing] = _CODES[reason.value]

    def reasons(self) -> pa.StringArray:
        """Reason of each row, null where it is kept."""
        codes = pa.array(self._codes, mask=self.passing)
        return pa.array(_REASONS, pa.string()).take(codes)


def decide(table: pa.Table, recipe: CurateRecipe, thresholds: Sequence[float]) -> Verdicts:
    """The verdicts of all rules up to the given number of score rules; `thresholds` are their lower ends."""
    verdicts = Verdicts(table)
    for reason, fails in _fixed_rules(table, recipe.select):
        verdicts.drop(reason, fails)
    for rule, threshold in zip(recipe.select.scores, thresholds, strict=False):
        scores = table[score_column(recipe, rule)].to_numpy().astype(np.float64)  # nan where there is no score
        verdicts.drop(DropReason.LOW_SCORE, ~(scores >= threshold))
        if rule.max is not None:
            verdicts.drop(DropReason.HIGH_SCORE, ~(scores <= rule.max))
    return verdicts


def score_column(recipe: CurateRecipe, rule: ScoreRule) -> str:
    """What the column of a score rule is called beside those of other signals."""
    return f"{rule.signal}.{recipe.column_of(rule)}"


def _fixed_rules(table: pa.Table, rules: SelectRecipe) -> Iterator[tuple[DropReason, Mask]]:
    """The rules that are switched on, in order: the reason, and which rows fail."""
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
    """A column as floats, nan where it is null: every comparison with nan fails."""
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def top_fraction_threshold(scores: npt.NDArray[np.float32], fraction: float) -> float:
    """The score at descending rank floor(N f), counted from 0 (DataComp's `get_threshold`); keep `score >= t`.

    Without any score, infinity: nothing is left to keep.
    """
    if len(scores) == 0:
        return float("inf")
    rank = min(int(len(scores) * fraction), len(scores) - 1)
    return float(-np.partition(-scores, rank)[rank])
