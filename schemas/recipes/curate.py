"""The curate recipe: everything that turns a source into a curated data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from pairloom.registry import SIGNALS, SOURCES
from pairloom.schemas.recipes.balance import BalanceRecipe, ClusterBalance
from pairloom.schemas.recipes.dedupe import DedupeRecipe
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name, Signal, SignalPart
from pairloom.schemas.recipes.source import SourcePart

Fraction = Annotated[float, Field(gt=0, le=1)]


class ImageRecipe(StrictModel):
    """How images are resized and stored, and which are refused."""

    resize: Literal["border", "center_crop", "keep_ratio", "keep_ratio_largest", "none"] = "keep_ratio"
    size: Annotated[int, Field(gt=0)] = 256  # px
    only_if_bigger: bool = True  # smaller images keep their original bytes
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    fast_decode: bool = True  # large JPEGs are decoded at 1/2 to 1/8 where that leaves twice the size; false: in full
    strip_metadata: bool = False  # also from images that keep their bytes: EXIF, XMP, comments; colour profiles stay
    min_bytes: Annotated[int, Field(ge=0)] = 0  # of the image as received
    max_bytes: Annotated[int, Field(gt=0)] | None = None  # of the image as received; fetch.max_bytes stops a download
    min_side: Annotated[int, Field(ge=0)] = 0  # px, of the image as received
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000  # read from the header, before any decode


class FetchRecipe(StrictModel):
    """How images are fetched. Never part of a hash: it changes speed and manners, not results."""

    concurrency: Annotated[int, Field(gt=0)] = 256  # requests in flight a worker
    per_host: Annotated[int, Field(gt=0)] = 32  # requests in flight to one host, of all workers together
    requests_per_second_per_host: Annotated[float, Field(gt=0)] | None = None  # of all workers together
    timeout_s: Annotated[float, Field(gt=0)] = 10  # of the whole transfer, its redirects included
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5  # name, connection and TLS
    first_byte_timeout_s: Annotated[float, Field(gt=0)] = 8  # from the start of a request, connecting included
    host_patience_s: Annotated[float, Field(ge=0)] = 60  # a shard waits so long for hosts that must be asked slowly
    outage_patience_s: Annotated[float, Field(ge=0)] = 300  # a shard waits so long for a network that is down
    retries: Annotated[int, Field(ge=0)] = 2
    max_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    obey_robots_txt: bool = True
    disallowed_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    user_agent: str | None = None
    allow_private_addresses: bool = False


class IngestRecipe(StrictModel):
    """Source rows -> raw shards."""

    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    max_caption_chars: Annotated[int, Field(gt=0)] = 5_000
    image: ImageRecipe = ImageRecipe()
    fetch: FetchRecipe = FetchRecipe()

    not_hashed: ClassVar[Mapping[str, str]] = {"fetch": "changes speed and politeness, not the images that come"}


class ScoreRule(StrictModel):
    """Keep by one column of a signal: from `min` to `max`, or the best `top_fraction` of what is left."""

    signal: Name
    column: str | None = None  # needed where the signal has several
    min: float | None = None
    max: float | None = None
    top_fraction: Fraction | None = None
    among: Literal["passing", "all"] = "passing"  # of top_fraction: what the rules before it keep, or all (DataComp)

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreRule:
        if self.among == "all" and self.top_fraction is None:
            raise ValueError("among belongs to top_fraction")
        if (self.min is None and self.max is None) == (self.top_fraction is None):
            raise ValueError("give min, max or both, or give top_fraction")
        return self


class SelectRecipe(StrictModel):
    """Thresholds over the measured columns; every uid gets a decision."""

    name: Name = "default"
    subset: str | None = None  # a .npy of DataComp: only uids in it are kept
    min_words: Annotated[int, Field(ge=0)] = 0
    min_chars: Annotated[int, Field(ge=0)] = 0
    languages: tuple[str, ...] | None = None
    min_side: Annotated[int, Field(ge=0)] = 0  # px, of the image as received
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    scores: tuple[ScoreRule, ...] = ()

    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder", "subset": "counts by content"}


class ReshardRecipe(StrictModel):
    """Kept samples -> curated shards."""

    name: Name = "train"
    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    shuffle: Literal["block", "global"] = "block"  # global: all samples mixed, every image written twice
    shuffle_seed: int = 0
    raw_shards_per_group: Annotated[int, Field(gt=0)] = 16  # read whole and permuted together

    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder"}


class CurateRecipe(StrictModel):
    """One curation: `pairloom curate RECIPE`."""

    model_config = ConfigDict(defer_build=True)  # signals and sources of other packages are imported when it is used

    root: str
    source: SourcePart
    ingest: IngestRecipe = IngestRecipe()
    signals: tuple[SignalPart, ...] = ()
    dedupe: DedupeRecipe = DedupeRecipe()
    select: SelectRecipe = SelectRecipe()
    balance: BalanceRecipe | None = None
    reshard: ReshardRecipe = ReshardRecipe()

    not_hashed: ClassVar[Mapping[str, str]] = {"root": "where the results lie"}

    @field_validator("signals")
    @classmethod
    def _unique_names(cls, signals: tuple[Signal, ...]) -> tuple[Signal, ...]:
        names = [signal.name for signal in signals]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two signals are called {name}")
        return signals

    @model_validator(mode="after")
    def _signals_fit(self) -> CurateRecipe:
        signals = {signal.name: signal for signal in self.signals}
        for signal in self.signals:
            signal.check(signals)
        if isinstance(self.balance, ClusterBalance):
            clusters = signals.get(self.balance.clusters)
            if clusters is None or not clusters.writes_clusters():
                raise ValueError(f"balance.clusters: {self.balance.clusters} is not a clusters signal")
        return self

    @model_validator(mode="after")
    def _rules_have_signals(self) -> CurateRecipe:
        for rule in self.select.scores:
            self.column_of(rule)
        needs_captions = self.select.min_words or self.select.min_chars or self.select.languages
        if needs_captions and self.caption_counts is None:
            raise ValueError("select: min_words, min_chars and languages need `- kind: captions` in signals")
        return self

    @model_validator(mode="after")
    def _dedupe_has_signals(self) -> CurateRecipe:
        signals = {signal.name: signal for signal in self.signals}
        self._check_keep(signals)
        hashes = self.dedupe.hashes
        if hashes and not (hashes in signals and signals[hashes].has_hashes):
            raise ValueError(f"dedupe.hashes: {hashes} is not a phash256 signal")
        for where, features in self.dedupe.features_used():
            if features not in signals or signals[features].feature_model() is None:
                raise ValueError(f"dedupe.{where}.features: {features} is not a clip signal of one model")
        if self.dedupe.prefer is not None and self.dedupe.prefer.column not in self.source.keep_columns:
            raise ValueError(f"dedupe.prefer.column: add {self.dedupe.prefer.column} to source.keep_columns")
        return self

    def _check_keep(self, signals: Mapping[str, Signal]) -> None:
        name = self.dedupe.score_signal
        if name is None:
            return
        if name not in signals:
            raise ValueError(f"dedupe.score_signal: {name} is not a signal; there are {sorted(signals)}")
        try:
            _chosen_column(signals[name], self.dedupe.score_column)
        except ValueError as error:
            raise ValueError(f"dedupe.score_column: {error}") from error

    def signal(self, name: str) -> Signal:
        """The signal of a name. Raises KeyError where there is none."""
        return {signal.name: signal for signal in self.signals}[name]

    @property
    def caption_counts(self) -> Signal | None:
        """The signal that counts words and tells languages."""
        return next((signal for signal in self.signals if signal.counts_captions), None)

    @property
    def keep_column(self) -> str | None:
        """The column of `dedupe.score_signal` that decides which duplicate is kept."""
        name = self.dedupe.score_signal
        return None if name is None else _chosen_column(self.signal(name), self.dedupe.score_column)

    def column_of(self, rule: ScoreRule) -> str:
        """The column that a score rule looks at. Raises ValueError where it does not exist or is not clear."""
        names = sorted(signal.name for signal in self.signals)
        if rule.signal not in names:
            raise ValueError(f"select.scores: {rule.signal} is not a signal; there are {names}")
        try:
            return _chosen_column(self.signal(rule.signal), rule.column)
        except ValueError as error:
            raise ValueError(f"select.scores: {error}") from error


def _chosen_column(signal: Signal, column: str | None) -> str:
    """The column that is named, or the only one. Raises ValueError where that is not clear."""
    columns = signal.rule_columns()
    if column is None and len(columns) == 1:
        return columns[0]
    if column not in columns:
        raise ValueError(f"give the column of {signal.name}: {', '.join(columns)}")
    return str(column)


SIGNALS.used_by(CurateRecipe)
SOURCES.used_by(CurateRecipe)
