"""Select: every row of the raw tables is kept, or dropped with a reason (`rules`). Seconds, and no Ray."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.balance.thinning import Plan, Thinning, plan_of
from pairloom.pipelines.engine.step_folder import BeforeWork, StepFolder, StepResult, nothing
from pairloom.pipelines.select.datacomp_subset import read_subset
from pairloom.pipelines.select.rules import decide, score_column, top_fraction_threshold
from pairloom.schemas.data_set.manifest import ShardEntry, count_reasons, load_manifest, table_url
from pairloom.schemas.data_set.tables import SELECTION, check_joined, read_table, write_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.recipes.balance import BalanceRecipe, ClusterBalance, EntryBalance
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import settings_of, step_hash

STEP = "selections"
VERSION = 1
NUM_THREADS = 8  # pyarrow reads and writes outside of the interpreter lock
_RAW_COLUMNS = ["uid", "key", "status", "drop_reason", "width", "height", "original_width", "original_height"]
_CAPTION_COLUMNS = ["num_words", "num_chars", "language", "language_score"]
_NOT_SHOWN = {"status", "dedupe_reason", "width", "height", "entries"}  # columns that no reader of a selection needs


@dataclass(frozen=True)
class Inputs:
    """The folders that a selection reads."""

    raw: str
    dedupe: str
    captions: str | None  # None: no rule looks at captions
    scores: Mapping[str, tuple[str, tuple[str, ...]]]  # signal name -> folder and columns, of the score rules only
    balance_column: str  # that balancing looks at
    balance: str | None  # matches of captions, or clusters; None: nothing is thinned out

    def parents(self) -> tuple[str, ...]:
        """Hashes of their manifests."""
        folders = [self.raw, self.dedupe, self.captions, *(folder for folder, _ in self.scores.values()), self.balance]
        return tuple(load_manifest(folder).hash() for folder in folders if folder is not None)


@dataclass(frozen=True)
class Limits:
    """What the data set as a whole decides: thresholds of the score rules, and what balancing draws."""

    thresholds: tuple[float, ...] = ()  # lower ends
    thinning: Thinning | None = None


def inputs_of(
    recipe: CurateRecipe,
    raw_folder: str,
    signal_folders: Mapping[str, str],
    dedupe_folder: str,
    balance_folder: str | None = None,
) -> Inputs:
    """The folders that the rules of this recipe look at."""
    rules = recipe.select
    captions = None
    if rules.min_words or rules.min_chars or rules.languages is not None:
        captions = signal_folders[recipe.caption_counts.name] if recipe.caption_counts is not None else None
    columns: dict[str, list[str]] = {}
    for rule in rules.scores:
        columns.setdefault(rule.signal, []).append(recipe.column_of(rule))
    scores = {name: (signal_folders[name], tuple(dict.fromkeys(columns[name]))) for name in columns}
    column = "cluster" if isinstance(recipe.balance, ClusterBalance) else "entries"
    return Inputs(raw_folder, dedupe_folder, captions, scores, column, balance_folder)


def select_folder(recipe: CurateRecipe, inputs: Inputs) -> StepFolder:
    """Where the selection lies. Only the signals that a rule looks at are among its parents."""
    parents = inputs.parents()
    settings = settings_of(recipe.select)
    if recipe.balance is not None:
        settings = {**settings, "balance": _draw_settings(recipe.balance)}
    if recipe.select.subset is not None:
        settings = {**settings, "subset": hashlib.sha256(read_subset(recipe.select.subset).tobytes()).hexdigest()}
    return StepFolder(recipe.root, STEP, recipe.select.name, step_hash(STEP, VERSION, settings, parents), parents)


def _draw_settings(rules: BalanceRecipe) -> dict[str, int]:
    """What changes the draw, beside the folder that it looks at."""
    if isinstance(rules, EntryBalance):
        return {"t": rules.t, "seed": rules.seed}
    return {"num_samples": rules.num_samples, "seed": rules.seed}


def select(recipe: CurateRecipe, inputs: Inputs, before_work: BeforeWork = nothing) -> str:
    """Decide about every row; returns the folder of the selection."""
    target = select_folder(recipe, inputs)
    return target.run_once(before_work, partial(_decide, recipe, inputs, target.url))


def _decide(recipe: CurateRecipe, inputs: Inputs, folder: str) -> StepResult:
    raw = load_manifest(inputs.raw)
    names = [shard.name for shard in raw.shards]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        limits = find_limits(pool, recipe, inputs, names)
        results = list(pool.map(partial(_select_shard, recipe, inputs, limits, folder), names))
    entries = [
        ShardEntry(shard.name, shard.num_rows, num_kept, num_bytes=0)
        for shard, (num_kept, _) in zip(raw.shards, results, strict=True)
    ]
    counts = sum((counter for _, counter in results), Counter[str]())
    named = [
        {
            "signal": rule.signal,
            "column": recipe.column_of(rule),
            "threshold": threshold if math.isfinite(threshold) else None,
            "max": rule.max,
        }
        for rule, threshold in zip(recipe.select.scores, limits.thresholds, strict=True)
    ]
    details = {"rules": settings_of(recipe.select, exclude={"scores"}), "thresholds": named}
    if recipe.balance is not None:
        details["balance"] = _draw_settings(recipe.balance)
    return StepResult(entries, counts, details)


def find_limits(pool: ThreadPoolExecutor, recipe: CurateRecipe, inputs: Inputs, names: Sequence[str]) -> Limits:
    """The threshold of each score rule, then the draw; each looks at what the rules before it keep."""
    thresholds: tuple[float, ...] = ()
    for rule in recipe.select.scores:
        if rule.top_fraction is None:
            thresholds += (float("-inf") if rule.min is None else rule.min,)
            continue
        work = partial(_passing_scores, recipe, inputs, thresholds)
        scores = np.concatenate(list(pool.map(work, names)))
        thresholds += (top_fraction_threshold(scores, rule.top_fraction),)
    if inputs.balance is None or recipe.balance is None:
        return Limits(thresholds)
    plan = plan_of(recipe.balance, inputs.balance)
    return Limits(thresholds, plan.finish(pool.map(partial(_look, recipe, inputs, thresholds, plan), names)))


def _passing_scores(
    recipe: CurateRecipe, inputs: Inputs, thresholds: Sequence[float], name: str
) -> npt.NDArray[np.float32]:
    """Scores under the next score rule, of the samples of one shard that pass all rules before it, or of all."""
    table = read_values(inputs, name)
    rule = recipe.select.scores[len(thresholds)]
    scores: npt.NDArray[np.float32] = table[score_column(recipe, rule)].to_numpy().astype(np.float32)
    is_asked = np.ones(len(scores), bool) if rule.among == "all" else decide(table, recipe, thresholds).passing
    chosen: npt.NDArray[np.float32] = scores[is_asked & ~np.isnan(scores)]
    return chosen


def _look(recipe: CurateRecipe, inputs: Inputs, thresholds: Sequence[float], plan: Plan, name: str) -> Any:
    """What balancing notes of the samples of one shard that pass all rules."""
    table = read_values(inputs, name)
    return plan.scan(table, decide(table, recipe, thresholds).passing)


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
    for signal, (folder, names) in inputs.scores.items():
        joined = _joined(raw, folder, name, list(names))
        for column in names:
            table = table.append_column(f"{signal}.{column}", joined[column])
    if inputs.balance is not None:
        column = inputs.balance_column
        table = table.append_column(column, _joined(raw, inputs.balance, name, [column])[column])
    return table


def _joined(raw: pa.Table, folder: str, name: str, columns: list[str]) -> pa.Table:
    table = read_table(table_url(folder, name), columns)
    check_joined(raw, table, f"{folder}: {name}")
    return table


def _select_shard(
    recipe: CurateRecipe, inputs: Inputs, limits: Limits, folder: str, name: str
) -> tuple[int, Counter[str]]:
    """Write the decisions of one shard with the values that decided; returns kept samples and counts of reasons."""
    table = read_values(inputs, name)
    verdicts = decide(table, recipe, limits.thresholds)
    if limits.thinning is not None:
        is_drawn, probabilities = limits.thinning.keeps(table)
        verdicts.drop(DropReason.BALANCED, ~is_drawn)
        table = table.append_column("balance_probability", pa.array(probabilities, pa.float32()))
    reasons = verdicts.reasons()
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
        if column not in SELECTION.names and column not in _NOT_SHOWN:
            selection = selection.append_column(column, table[column])
    write_table(table_url(folder, name), selection)
    return int(pc.sum(columns["kept"]).as_py() or 0), count_reasons(reasons)
