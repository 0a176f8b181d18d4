"""Select: every row of the raw tables is kept, or dropped with a reason. Seconds, and no Ray.

Rules in order, the first that fails gives the reason: ingest's own reason, dedupe's, num_words, num_chars, size,
aspect ratio, language, then the score rules one by one. A `top_fraction` is taken of the samples that pass every rule
before it; its threshold is DataComp's: the score at descending rank floor(N f), counted from 0, and ties stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.step_folder import BeforeWork, StepFolder, nothing
from schemas.curate_recipe import CurateRecipe, ScoreRule, SelectRecipe
from schemas.drop_reason import DropReason
from schemas.errors import InputError
from schemas.manifest import Manifest, ShardEntry, count_reasons, load_manifest, table_url
from schemas.recipe_io import settings_of, step_hash
from schemas.sample import SELECTION, STATUS_SUCCESS, check_joined, read_table, write_table

STEP = "selections"
VERSION = 1
NUM_THREADS = 8  # pyarrow reads and writes outside of the interpreter lock
_RAW_COLUMNS = ["uid", "key", "status", "drop_reason", "width", "height", "original_width", "original_height"]
_CAPTION_COLUMNS = ["num_words", "num_chars", "language", "language_score"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Inputs:
    """The folders that a selection reads."""

    raw: str
    dedupe: str
    captions: str | None  # None: no rule looks at captions
    scores: Mapping[str, str]  # signal name -> folder, of the score rules only


def select_folder(
    recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str], dedupe_folder: str
) -> StepFolder:
    """Where the selection lies. Only the signals that a rule looks at are among its parents."""
    inputs = inputs_of(recipe, raw_folder, signal_folders, dedupe_folder)
    folders = [inputs.raw, inputs.dedupe, *filter(None, [inputs.captions]), *inputs.scores.values()]
    parents = [load_manifest(folder).hash() for folder in folders]
    result = step_hash(STEP, VERSION, settings_of(recipe.select, exclude={"name"}), parents)
    return StepFolder(recipe.root, STEP, recipe.select.name, result, tuple(parents))


def inputs_of(recipe: CurateRecipe, raw_folder: str, signal_folders: Mapping[str, str], dedupe_folder: str) -> Inputs:
    """The folders that the rules of this recipe look at."""
    rules = recipe.select
    captions = None
    if rules.min_words or rules.min_chars or rules.languages is not None:
        names = [signal.name for signal in recipe.signals if signal.kind == "captions"]
        captions = signal_folders[names[0]]
    scores = {rule.signal: signal_folders[rule.signal] for rule in rules.scores}
    return Inputs(raw_folder, dedupe_folder, captions, scores)


def select(
    recipe: CurateRecipe,
    raw_folder: str,
    signal_folders: Mapping[str, str],
    dedupe_folder: str,
    before_work: BeforeWork = nothing,
) -> str:
    """Decide about every row; returns the folder of the selection."""
    target = select_folder(recipe, raw_folder, signal_folders, dedupe_folder)
    if target.is_complete():
        target.point_latest()
        return target.url
    before_work()
    inputs = inputs_of(recipe, raw_folder, signal_folders, dedupe_folder)
    raw = load_manifest(raw_folder)
    names = [shard.name for shard in raw.shards]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        thresholds = find_thresholds(pool, inputs, recipe.select, names)
        work = partial(_select_shard, inputs, recipe.select, thresholds, target.url)
        results = list(pool.map(work, names))
    entries = [
        ShardEntry(shard.name, shard.num_rows, num_kept, num_bytes=0)
        for shard, (num_kept, _) in zip(raw.shards, results, strict=True)
    ]
    counts = sum((counter for _, counter in results), Counter[str]())
    named = [
        {"signal": rule.signal, "threshold": threshold}
        for rule, threshold in zip(recipe.select.scores, thresholds, strict=True)
    ]
    target.finish(entries, counts, {"thresholds": named})
    return target.url


def find_thresholds(pool: ThreadPoolExecutor, inputs: Inputs, rules: SelectRecipe, names: Sequence[str]) -> list[float]:
    """The threshold of each score rule; a top_fraction looks at all samples that pass the rules before it."""
    thresholds: list[float] = []
    for rule in rules.scores:
        if rule.min is not None:
            thresholds.append(rule.min)
            continue
        work = partial(_passing_scores, inputs, rules, tuple(thresholds))
        scores = np.concatenate(list(pool.map(work, names)))
        thresholds.append(top_fraction_threshold(scores, float(rule.top_fraction or 1.0)))
    return thresholds


def top_fraction_threshold(scores: npt.NDArray[np.float32], fraction: float) -> float:
    """The score at descending rank floor(N f), counted from 0 (DataComp's `get_threshold`); keep `score >= t`.

    Without any score, infinity: nothing is left to keep.
    """
    if len(scores) == 0:
        return float("inf")
    rank = min(int(len(scores) * fraction), len(scores) - 1)
    return float(-np.partition(-scores, rank)[rank])


def _passing_scores(
    inputs: Inputs, rules: SelectRecipe, thresholds: Sequence[float], name: str
) -> npt.NDArray[np.float32]:
    """Scores under the next score rule, of the samples of one shard that pass all rules before it."""
    table = read_values(inputs, name)
    passing = decide(table, rules, thresholds).passing
    scores = _score(table, rules.scores[len(thresholds)])
    chosen: npt.NDArray[np.float32] = scores[passing & ~np.isnan(scores)]
    return chosen


def read_values(inputs: Inputs, name: str) -> pa.Table:
    """All columns that decide about the rows of one shard, joined by position."""
    raw = read_table(table_url(inputs.raw, name), _RAW_COLUMNS)
    dedupe = _joined(raw, inputs.dedupe, name, ["drop_reason", "duplicate_of", "duplicate_group"])
    table = raw.append_column("dedupe_reason", dedupe["drop_reason"])
    for column in ("duplicate_of", "duplicate_group"):
        table = table.append_column(column, dedupe[column])
    if inputs.captions is not None:
        captions = _joined(raw, inputs.captions, name, _CAPTION_COLUMNS)
        for column in _CAPTION_COLUMNS:
            table = table.append_column(column, captions[column])
    for signal, folder in inputs.scores.items():
        scores = _joined(raw, folder, name, ["clip_score"])
        table = table.append_column(f"{signal}.clip_score", scores["clip_score"])
    return table


def _joined(raw: pa.Table, folder: str, name: str, columns: list[str]) -> pa.Table:
    table = read_table(table_url(folder, name), columns)
    check_joined(raw, table, f"{folder}: {name}")
    return table


class Verdicts:
    """The drop_reason of each row of one shard; the first rule that a row fails gives it."""

    def __init__(self, reasons: list[str | None]) -> None:
        self.reasons = reasons
        self.passing: Mask = np.array([reason is None for reason in reasons], bool)

    def drop(self, reason: DropReason, fails: Mask) -> None:
        """Drop the rows that fail and that no earlier rule has dropped."""
        for row in np.flatnonzero(fails & self.passing):
            self.reasons[row] = reason.value
        self.passing &= ~fails


def decide(table: pa.Table, rules: SelectRecipe, thresholds: Sequence[float]) -> Verdicts:
    """The verdicts of all rules up to the given number of score rules."""
    verdicts = Verdicts(pc.coalesce(table["drop_reason"], table["dedupe_reason"]).to_pylist())
    verdicts.drop(DropReason.MISSING_IMAGE, np.asarray(pc.not_equal(table["status"], STATUS_SUCCESS), bool))
    for reason, fails in _rules(table, rules):
        verdicts.drop(reason, fails())
    for rule, threshold in zip(rules.scores, thresholds, strict=False):
        passes = _score(table, rule).astype(np.float64) >= threshold  # false where there is no score
        verdicts.drop(DropReason.LOW_SCORE, ~passes)
    return verdicts


def _rules(table: pa.Table, rules: SelectRecipe) -> list[tuple[DropReason, Callable[[], Mask]]]:
    """The rules that are switched on, in order: the reason, and which rows fail."""
    width = _numbers(pc.coalesce(table["original_width"], table["width"]))
    height = _numbers(pc.coalesce(table["original_height"], table["height"]))
    short, long = np.minimum(width, height), np.maximum(width, height)
    chosen: list[tuple[DropReason, Callable[[], Mask]]] = []
    if rules.min_words:
        chosen.append((DropReason.FEW_WORDS, lambda: ~(_numbers(table["num_words"]) >= rules.min_words)))
    if rules.min_chars:
        chosen.append((DropReason.FEW_CHARS, lambda: ~(_numbers(table["num_chars"]) >= rules.min_chars)))
    if rules.min_side:
        chosen.append((DropReason.TOO_SMALL, lambda: ~(short >= rules.min_side)))
    if rules.max_aspect_ratio is not None:
        limit = rules.max_aspect_ratio
        chosen.append((DropReason.ASPECT_RATIO, lambda: ~(long <= limit * short)))
    if rules.languages is not None:
        allowed = pa.array(rules.languages, pa.string())
        chosen.append((DropReason.LANGUAGE, lambda: ~np.asarray(pc.is_in(table["language"], allowed), dtype=bool)))
    return chosen


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    """A column as floats, nan where it is null: every comparison with nan fails."""
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _score(table: pa.Table, rule: ScoreRule) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = table[f"{rule.signal}.clip_score"].to_numpy().astype(np.float32)
    return scores


def _select_shard(
    inputs: Inputs, rules: SelectRecipe, thresholds: Sequence[float], folder: str, name: str
) -> tuple[int, Counter[str]]:
    """Write the decisions of one shard with the values that decided; returns kept samples and counts of reasons."""
    table = read_values(inputs, name)
    reasons = pa.array(decide(table, rules, thresholds).reasons, pa.string())
    columns = {
        "uid": table["uid"],
        "key": table["key"],
        "kept": pc.is_null(reasons),
        "drop_reason": reasons,
        "duplicate_of": table["duplicate_of"],
        "duplicate_group": table["duplicate_group"],
        "weight": pa.array(np.ones(table.num_rows, np.float32)),
    }
    selection = pa.table(columns, schema=SELECTION)
    for column in table.column_names:
        if column not in SELECTION.names and column not in ("status", "dedupe_reason", "width", "height"):
            selection = selection.append_column(column, table[column])
    write_table(table_url(folder, name), selection)
    return int(pc.sum(columns["kept"]).as_py() or 0), count_reasons(reasons)


def difference(before_folder: str, after_folder: str) -> dict[str, int | str]:
    """How many samples two selections of the same raw shards keep: before, after, both. Raises InputError."""
    before, after = load_manifest(before_folder), load_manifest(after_folder)
    if before.parents[0] != after.parents[0]:
        raise InputError(f"{before_folder} and {after_folder} are selections of different raw shards")
    both = sum(_kept_by_both(before_folder, after_folder, shard) for shard in _common(before, after))
    return {"before": before_folder, "kept_before": before.num_samples, "kept_after": after.num_samples,
            "kept_by_both": both}  # fmt: skip


def _common(before: Manifest, after: Manifest) -> list[str]:
    return sorted({shard.name for shard in before.shards} & {shard.name for shard in after.shards})


def _kept_by_both(before_folder: str, after_folder: str, name: str) -> int:
    before, after = (read_table(table_url(folder, name), ["kept"])["kept"] for folder in (before_folder, after_folder))
    return int(pc.sum(pc.and_(before, after)).as_py() or 0)
