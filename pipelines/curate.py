"""All steps of a curation in order: a source of pairs -> a curated data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pairloom.pipelines.balance.balance import balance
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.engine.root_lock import lazy_shared_lock
from pairloom.pipelines.engine.step_folder import BeforeWork, latest_folder, only_command
from pairloom.pipelines.ingest.ingest import ingest, raw_folder
from pairloom.pipelines.ingest.retry import retry_transient
from pairloom.pipelines.optout.apply import apply_tombstones
from pairloom.pipelines.reshard.reshard import reshard
from pairloom.pipelines.select.compare import difference
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.measure import comes_after_dedupe, in_order, measure_signal
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.data_set.result_path import COMMANDS
from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.balance import ClusterBalance
from pairloom.schemas.recipes.curate import CurateRecipe


def curate(
    recipe: CurateRecipe,
    start_ray: Callable[[], None],
    only: str | None = None,
    retry: bool = False,
    limits: DedupeLimits = DEFAULT_LIMITS,
) -> dict[str, Any]:
    """Run all steps, or `only` one step whose inputs are complete. Complete steps are not run again.

    `retry` fetches rows again that failed for a transient reason. `start_ray` is called before the first step that
    needs Ray. Returns a summary: folder, rows, kept samples and drop counts per step, the difference to the last
    selection, and the counts of a retry. Raises UserError.
    """
    with lazy_shared_lock(recipe.root, "curate") as acquire_lock:
        steps = CurateSteps(recipe, start_ray, acquire_lock, only)
        steps.ingest(retry)
        steps.signals(after_dedupe=False)
        steps.dedupe(limits)
        steps.signals(after_dedupe=True)
        steps.balance()
        steps.select()
        steps.reshard()
        return steps.summary()


class CurateSteps:
    """The steps of one curation, and the folders of their results so far."""

    def __init__(
        self, recipe: CurateRecipe, start_ray: Callable[[], None], acquire_lock: BeforeWork, only: str | None
    ) -> None:
        _check(recipe, only)
        self._recipe, self._only, self._acquire_lock = recipe, only, acquire_lock

        def lock_and_start_ray() -> None:
            acquire_lock()
            start_ray()

        self._start_ray = lock_and_start_ray
        self._raw = self._dedupe = self._selection = ""
        self._balance: str | None = None
        self._signals: dict[str, str] = {}
        self._steps: list[dict[str, Any]] = []
        self._difference: dict[str, Any] | None = None
        self._retried: dict[str, int] | None = None

    def ingest(self, retry: bool = False) -> None:
        """Source -> raw shards."""
        if retry and self._only not in (None, "ingest"):
            raise RecipeError(f"--retry belongs to ingest; omit --only {self._only}")
        if self._only in (None, "ingest"):
            self._raw = ingest(self._recipe, self._start_ray)
        else:
            self._raw = _complete_raw(self._recipe)
        if retry:
            self._retried = retry_transient(self._recipe, self._raw, self._start_ray)
        self._note("ingest", self._raw)

    def signals(self, after_dedupe: bool) -> None:
        """Raw shards -> columns: signals that dedupe may use, or signals that use dedupe."""
        for signal in in_order(self._recipe):
            if self._is_past("signals") or comes_after_dedupe(self._recipe, signal) != after_dedupe:
                continue
            before_work = self._before("signals", signal.name, self._start_ray)
            folder = measure_signal(self._recipe, signal, self._raw, self._dedupe or None, before_work)
            self._signals[signal.name] = folder
            self._note(f"signals {signal.name}", folder)

    def dedupe(self, limits: DedupeLimits) -> None:
        """A few columns of all shards -> duplicates and their kept samples."""
        needed = any(comes_after_dedupe(self._recipe, signal) for signal in self._recipe.signals)
        if self._is_past("dedupe") and not (self._only == "signals" and needed):
            return
        before_work = self._before("dedupe", self._recipe.dedupe.name, self._start_ray)
        self._dedupe = dedupe(self._recipe, self._raw, self._signals, before_work, limits)
        self._note("dedupe", self._dedupe)

    def balance(self) -> None:
        """Captions -> their matching entries. `select` draws by these, or by the clusters of a signal."""
        if self._recipe.balance is None or self._is_past("balance"):
            return
        if isinstance(self._recipe.balance, ClusterBalance):
            self._balance = self._signals[self._recipe.balance.clusters]
            return
        before_work = self._before("balance", self._recipe.balance.name, self._start_ray)
        self._balance = balance(self._recipe, self._raw, before_work)
        self._note("balance", self._balance)

    def select(self) -> None:
        """Columns -> one decision per uid."""
        if self._is_past("select"):
            return
        name = self._recipe.select.name
        last = latest_folder(self._recipe.root, "selections", name)
        before_work = self._before("select", name, self._acquire_lock)
        inputs = inputs_of(self._recipe, self._raw, self._signals, self._dedupe, self._balance)
        self._selection = select(self._recipe, inputs, before_work)
        if last is not None and load_manifest(last).parents[0] == load_manifest(self._raw).hash():
            self._difference = difference(last, self._selection)
        self._note("select", self._selection)

    def reshard(self) -> None:
        """Raw shards and a selection -> curated shards."""
        if self._is_past("reshard"):
            return
        folder = reshard(self._recipe, self._raw, self._selection, self._start_ray)
        self._note("reshard", folder)

    def summary(self) -> dict[str, Any]:
        """The summary that `curate` returns."""
        return {
            "root": self._recipe.root,
            "steps": self._steps,
            "difference": self._difference,
            "retried": self._retried,
        }

    def _is_past(self, step: str) -> bool:
        """Whether a step comes after the one that `only` names."""
        return self._only is not None and COMMANDS.index(step) > COMMANDS.index(self._only)

    def _before(self, step: str, name: str, start: BeforeWork) -> BeforeWork:
        """The BeforeWork of a step: `start`, or an error if `only` names another step."""
        return start if self._only in (None, step) else only_command(step, name)

    def _note(self, name: str, folder: str) -> None:
        manifest = load_manifest(folder)
        self._steps.append(
            {
                "name": name,
                "folder": folder,
                "num_rows": manifest.num_rows,
                "num_kept": manifest.num_samples,
                "drop_counts": dict(manifest.drop_counts),
            }
        )


def _check(recipe: CurateRecipe, only: str | None) -> None:
    if only is not None and only not in COMMANDS:
        raise RecipeError(f"--only {only}: no such step; choose one of {', '.join(COMMANDS)}")
    after_dedupe = {signal.name for signal in recipe.signals if comes_after_dedupe(recipe, signal)}
    if recipe.dedupe.score_signal in after_dedupe:
        name = recipe.dedupe.score_signal
        raise RecipeError(
            f"dedupe.score_signal: {name} is measured after dedupe (for example out of fold); name another signal"
        )


def _complete_raw(recipe: CurateRecipe) -> str:
    folder = raw_folder(recipe)
    if not folder.is_complete():
        only_command("ingest", recipe.source.name)()
    apply_tombstones(folder.url)
    return folder.url
