"""Signals: measured columns of every sample. The base class of all kinds, built in or from other packages."""

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
    """Recipe part of one signal, and the work that measures it.

    A subclass gives `kind` a Literal type and adds its own fields. `measure` writes one table per raw shard, with the
    rows of the raw table in its order: `uid`, then the measured columns. A signal holds no threshold.
    """

    kind: str
    name: Name

    version: ClassVar[int] = 1  # raised when the same input gives other columns
    score_columns: ClassVar[tuple[str, ...]] = ()  # numbers that score rules may use
    has_hashes: ClassVar[bool] = False  # writes `phash256`, which dedupe.hashes may name
    counts_captions: ClassVar[bool] = False  # writes num_words, num_chars and language, which select rules use
    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder"}
    is_per_shard: ClassVar[bool] = True  # a shard's columns depend on that shard alone

    def rule_columns(self) -> tuple[str, ...]:
        """The columns that score rules, dedupe's `keep` and balance may use."""
        return self.score_columns

    def writes_clusters(self) -> bool:
        """True when the signal writes `cluster`, which `balance.clusters` may name."""
        return False

    def writes_features(self) -> bool:
        """True when the signal writes image features beside each table."""
        return False

    def feature_model(self) -> str | None:
        """The folder of the one model that all features are of, which may score other images; None: there is none."""
        return None

    def model_folders(self) -> tuple[str, ...]:
        """Model folders that the signal loads, for `pairloom doctor`."""
        return ()

    def needs(self) -> tuple[str, ...]:
        """Names of the signals whose columns or features this one reads."""
        return ()

    def reads_dedupe(self) -> bool:
        """True when the signal reads dedupe's table; it is measured after dedupe then."""
        return False

    def check(self, signals: Mapping[str, Signal]) -> None:
        """Raise ValueError where the recipe's other signals do not fit; `signals` has all of them by name."""
        for name in self.needs():
            if name not in signals:
                raise ValueError(f"signals.{self.name}: {name} is not a signal; there are {sorted(signals)}")

    def settings(self) -> dict[str, Any]:
        """The fields that are part of the folder's hash: all but those in `not_hashed`."""
        return {**settings_of(self), "kind": self.kind}

    def inputs(self) -> dict[str, str]:
        """Content fingerprints of the models and files that the signal reads. Raises InputError."""
        return {}

    def prepare(self) -> None:
        """Called once before any shard is measured. Raises InputError where the work cannot begin."""

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Write the tables of `work.shards`; returns details for the manifest."""
        raise NotImplementedError(f"signal {self.kind} measures nothing")


@dataclass(frozen=True)
class MeasuredSignal:
    """A signal that another one needs, and the folder of its columns."""

    signal: Signal
    folder: str


@dataclass(frozen=True)
class SignalWork:
    """The shards of one signal that are not measured yet, and the folders to read and write."""

    raw_folder: str
    folder: str
    shards: Sequence[ShardEntry]
    num_done: int = 0  # shards that were measured earlier
    dedupe_folder: str | None = None
    needed: Mapping[str, MeasuredSignal] = field(default_factory=dict)  # by name


SignalPart = Annotated[Signal, PartOf(SIGNALS)]
