"""Select: keep every row of the raw tables, or drop it with a reason (rules.py). Takes seconds, without Ray."""

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
NUM_THREADS = 8  # pyarrow releases the GIL
_RAW_COLUMNS = ["uid", "key", "status", "drop_reason", "width", "height", "original_width", "original_height"]
_CAPTION_COLUMNS = ["num_words", "num_chars", "language", "language_score"]
_NOT_SHOWN = {"status", "dedupe_reason", "width", "height", "entries"}  # columns that are not copied to the selection


@dataclass(frozen=True)
class Inputs:
    """The folders that a selection reads."""

    raw: str
    dedupe: str
    captions: str | None  # None: no rule uses captions
    scores: Mapping[str, tuple[str, tuple[str, ...]]]  # signal name -> folder and columns of the score rules
    balance_column: str  # column for balancing
    balance: str | None  # folder of matches or clusters; None: no balancing

    def parents(self) -> tuple[str, ...]:
        """Hashes of their manifests."""
        folders = [self.raw, self.dedupe, self.captions, *(folder for folder, _ in self.scores.values()), self.balance]
        return tuple(load_manifest(folder).hash() for folder in folders if folder is not None)


@dataclass(frozen=True)
class Limits:
    """Decisions that need the whole data set: thresholds of the score rules, and the draw of balancing."""

    thresholds: tuple[float, ...] = ()  # lower bounds
    thinning: Thinning | None = None


def inputs_of(
    recipe: CurateRecipe,
    raw_folder: str,
    signal_folders: Mapping[str, str],
    dedupe_folder: str,
    balance_folder: str | None = None,
) -> Inputs:
    """The folders that the rules of this recipe use."""
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
    """The folder of the selection. Its parents include only the signals that a rule uses."""
    parents = inputs.parents()
    settings = settings_of(recipe.select)
    if recipe.balance is not None:
        settings = {**settings, "balance": _draw_settings(recipe.balance)}
    if recipe.select.subset is not None:
        settings = {**settings, "subset": hashlib.sha256(read_subset(recipe.select.subset).tobytes()).hexdigest()}
    return StepFolder(recipe.root, STEP, recipe.select.name, step_hash(STEP, VERSION, settings, parents), parents)


def _draw_settings(rules: BalanceRecipe) -> dict[str, int]:
    """The settings that change the draw."""
    if isinstance(rules, EntryBalance):
        return {"t": rules.t, "seed": rules.seed}
    return {"num_samples": rules.num_samples, "seed": rules.seed}


def select(recipe: CurateRecipe, inputs: Inputs, before_work: BeforeWork = nothing) -> str:
    """Decide every row. Returns the folder of the selection. Raises UserError."""
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
    """The threshold of each score rule, then the draw; each uses the samples that all previous rules keep."""
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
    return Limits(thresholds, plan.finish(pool.map(partial(_scan, recipe, inputs, thresholds, plan), names)))


def _passing_scores(
    recipe: CurateRecipe, inputs: Inputs, thresholds: Sequence[float], name: str
) -> npt.NDArray[np.float32]:
    """Scores of the next score rule in one shard, of samples that pass all previous rules (or of all)."""
    table = read_values(inputs, name)
    rule = recipe.select.scores[len(thresholds)]
    scores: npt.NDArray[np.float32] = table[score_column(recipe, rule)].to_numpy().astype(np.float32)
    is_used = np.ones(len(scores), bool) if rule.among == "all" else decide(table, recipe, thresholds).passing
    chosen: npt.NDArray[np.float32] = scores[is_used & ~np.isnan(scores)]
    return chosen


def _scan(recipe: CurateRecipe, inputs: Inputs, thresholds: Sequence[float], plan: Plan, name: str) -> Any:
    """The statistics for balancing of one shard, over the samples that pass all rules."""
    table = read_values(inputs, name)
    return plan.scan(table, decide(table, recipe, thresholds).passing)


def read_values(inputs: Inputs, name: str) -> pa.Table:
    """All columns that the rules use for one shard, joined by position."""
    raw = read_table(table_url(inputs.raw, name), _RAW_COLUMNS)
    dedupe = _read_joined(raw, inputs.dedupe, name, ["drop_reason", "duplicate_of", "duplicate_group"])
    table = raw.append_column("dedupe_reason", dedupe["drop_reason"])
    for column in ("duplicate_of", "duplicate_group"):
        table = table.append_column(column, dedupe[column])
    if inputs.captions is not None:
        captions = _read_joined(raw, inputs.captions, name, _CAPTION_COLUMNS)
        for column in _CAPTION_COLUMNS:
            table = table.append_column(column, captions[column])
    for signal, (folder, names) in inputs.scores.items():
        measured = _read_joined(raw, folder, name, list(names))
        for column in names:
            table = table.append_column(f"{signal}.{column}", measured[column])
    if inputs.balance is not None:
        column = inputs.balance_column
        table = table.append_column(column, _read_joined(raw, inputs.balance, name, [column])[column])
    return table


def _read_joined(raw: pa.Table, folder: str, name: str, columns: list[str]) -> pa.Table:
    table = read_table(table_url(folder, name), columns)
    check_joined(raw, table, f"{folder}: {name}")
    return table


def _select_shard(
    recipe: CurateRecipe, inputs: Inputs, limits: Limits, folder: str, name: str
) -> tuple[int, Counter[str]]:
    """Write the decisions of one shard with the values used. Returns the number of kept samples and drop counts."""
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
