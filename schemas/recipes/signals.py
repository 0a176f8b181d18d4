"""Signals: measured columns of every sample. The base class of all kinds, of this package and of plug-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pairloom.registry import SIGNALS, PartOf
from pairloom.schemas.recipes.load import StrictModel, settings_of

if TYPE_CHECKING:
    from pairloom.schemas.data_set.manifest import ShardEntry

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class Signal(StrictModel):
    """Recipe part of one signal, and the code that measures it.

    A subclass gives `kind` a Literal type and adds its own fields. `measure` writes one table per raw shard, with the
    rows of the raw table in the same order: `uid`, then the measured columns. A signal has no thresholds.
    """

    kind: str
    """Kind of the signal."""
    name: Name
    """Name of the result: `<root>/signals/<name>`; rules refer to it."""

    version: ClassVar[int] = 1  # raise it when the same input gives other columns
    score_columns: ClassVar[tuple[str, ...]] = ()  # numeric columns for score rules
    has_hashes: ClassVar[bool] = False  # writes `phash256`, for dedupe.hashes
    counts_captions: ClassVar[bool] = False  # writes num_words, num_chars and language, for select
    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder"}
    is_per_shard: ClassVar[bool] = True  # the columns of a shard depend on that shard alone

    def rule_columns(self) -> tuple[str, ...]:
        """The columns for score rules, dedupe's `keep` and balance."""
        return self.score_columns

    def writes_clusters(self) -> bool:
        """Whether the signal writes `cluster`, for `balance.clusters`."""
        return False

    def writes_features(self) -> bool:
        """Whether the signal writes image features beside each table."""
        return False

    def feature_model(self) -> str | None:
        """The folder of the only model of the features, which can score other images; None: there is none."""
        return None

    def model_folders(self) -> tuple[str, ...]:
        """Model folders that the signal loads, for `pairloom doctor`."""
        return ()

    def needs(self) -> tuple[str, ...]:
        """Names of the signals whose columns or features this one reads."""
        return ()

    def reads_dedupe(self) -> bool:
        """Whether the signal reads the tables of dedupe; then it is measured after dedupe."""
        return False

    def check(self, signals: Mapping[str, Signal]) -> None:
        """Check the recipe's other signals; `signals` has all of them by name. Raises ValueError."""
        for name in self.needs():
            if name not in signals:
                raise ValueError(f"signals.{self.name}: {name} is not a signal; use one of {sorted(signals)}")

    def settings(self) -> dict[str, Any]:
        """The fields that are part of the folder's hash: all but those in `not_hashed`."""
        return {**settings_of(self), "kind": self.kind}

    def inputs(self) -> dict[str, str]:
        """Content fingerprints of the models and files that the signal reads. Raises InputError."""
        return {}

    def prepare(self) -> None:
        """Called once before the first shard is measured. Raises InputError if the signal cannot be measured."""

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Write the tables of `work.shards`. Returns details for the manifest."""
        raise NotImplementedError(f"signal {self.kind}: measure is not implemented")


@dataclass(frozen=True)
class MeasuredSignal:
    """A signal that another signal needs, and the folder of its columns."""

    signal: Signal
    folder: str


@dataclass(frozen=True)
class SignalWork:
    """The missing shards of one signal, and the folders to read and write."""

    raw_folder: str
    folder: str
    shards: Sequence[ShardEntry]
    num_done: int = 0  # shards measured by earlier runs
    dedupe_folder: str | None = None
    needed: Mapping[str, MeasuredSignal] = field(default_factory=dict)  # by name


SignalPart = Annotated[Signal, PartOf(SIGNALS)]
