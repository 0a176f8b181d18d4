"""The curate recipe: all settings from a source to a curated data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from pairloom.registry import SIGNALS, SOURCES
from pairloom.schemas.recipes.balance import BalanceRecipe, ClusterBalance
from pairloom.schemas.recipes.dedupe import DedupeRecipe
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name, Signal, SignalPart
from pairloom.schemas.recipes.source import SourcePart

Fraction = Annotated[float, Field(gt=0, le=1)]
PROXY_SCHEMES = ("http://", "https://", "socks5://", "socks5h://")


class ImageRecipe(StrictModel):
    """Resizing and storing of images, and limits that drop images."""

    resize: Literal["border", "center_crop", "keep_ratio", "keep_ratio_largest", "none"] = "keep_ratio"
    """Resize mode, as in img2dataset. keep_ratio: shorter side to `size`; keep_ratio_largest: longer side to `size`;
    center_crop: shorter side to `size`, then the middle square; border: longer side to `size`, then a white square."""
    size: Annotated[int, Field(gt=0)] = 256
    """Target size of a side, px."""
    only_if_bigger: bool = True
    """Do not enlarge: smaller images keep their original bytes."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """File format of resized images."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG or WebP quality, 1 to 100."""
    fast_decode: bool = True
    """Decode large JPEGs at 1/2 to 1/8 of their size if at least twice `size` remains; false: always in full."""
    strip_metadata: bool = False
    """Remove EXIF, XMP and comments from images that keep their bytes too; colour profiles stay."""
    min_bytes: Annotated[int, Field(ge=0)] = 0
    """Smallest image as received, bytes."""
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    """Largest image as received, bytes; null: no limit. `fetch.max_bytes` stops a download."""
    min_side: Annotated[int, Field(ge=0)] = 0
    """Smallest shorter side of an image as received, px."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of longer to shorter side; null: no limit."""
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000
    """Largest image, px; checked on the header, before decoding."""


class FetchRecipe(StrictModel):
    """Fetching of images. It changes speed and politeness, not results, and is never part of a hash."""

    concurrency: Annotated[int, Field(gt=0)] = 256
    """Requests in flight per worker."""
    per_host: Annotated[int, Field(gt=0)] = 32
    """Requests in flight to one host, over all workers together."""
    requests_per_second_per_host: Annotated[float, Field(gt=0)] | None = None
    """Requests per second to one host, over all workers together; null: no limit."""
    timeout_s: Annotated[float, Field(gt=0)] = 10
    """Limit of a whole transfer including redirects, seconds."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    """Limit of name look-up, connection and TLS, seconds."""
    first_byte_timeout_s: Annotated[float, Field(gt=0)] = 8
    """Limit from the start of a request to the first byte, seconds."""
    host_patience_s: Annotated[float, Field(ge=0)] = 60
    """Longest time that a shard waits for rate-limited hosts, seconds."""
    outage_patience_s: Annotated[float, Field(ge=0)] = 300
    """Longest time that a shard waits for a network that is down, seconds; 0: such rows are recorded as failed."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a transient failure."""
    max_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    """Largest body, bytes; a larger download is stopped."""
    obey_robots_txt: bool = True
    """Fetch and obey robots.txt (RFC 9309)."""
    disallowed_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Values of X-Robots-Tag that drop an image."""
    user_agent: str | None = None
    """User-Agent header; null: `pairloom/<version>`. Add a contact address for large crawls."""
    allow_private_addresses: bool = False
    """Permit private, loopback and link-local addresses."""
    proxy: Annotated[SecretStr | None, Field(exclude=True)] = None
    """Proxy for all requests, an http, https, socks5 or socks5h URL; null: none. It resolves names, so that private
    addresses are not detected. It is not written to saved recipes, logs or tables."""

    @field_validator("proxy")
    @classmethod
    def _proxy_url(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None and not proxy.get_secret_value().startswith(PROXY_SCHEMES):
            raise ValueError(f"not a proxy URL; begin it with one of {', '.join(PROXY_SCHEMES)}")
        return proxy


class IngestRecipe(StrictModel):
    """Source rows -> raw shards."""

    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    """Source rows per raw shard."""
    max_caption_chars: Annotated[int, Field(gt=0)] = 5_000
    """Longest caption, characters; rows with a longer one are dropped."""
    image: ImageRecipe = ImageRecipe()
    """Resizing and storing of images."""
    fetch: FetchRecipe = FetchRecipe()
    """Fetching of images."""

    not_hashed: ClassVar[Mapping[str, str]] = {"fetch": "changes speed and politeness, not the stored images"}


class ScoreRule(StrictModel):
    """Keep samples by one column of a signal: between `min` and `max`, or the best `top_fraction`."""

    signal: Name
    """Name of the signal."""
    column: str | None = None
    """Column of the signal; null: its only column."""
    min: float | None = None
    """Smallest kept value; null: no limit."""
    max: float | None = None
    """Largest kept value; null: no limit."""
    top_fraction: Fraction | None = None
    """Share of samples with the highest values to keep, 0 to 1; instead of `min` and `max`."""
    among: Literal["passing", "all"] = "passing"
    """Base of `top_fraction`: samples that pass all previous rules, or all samples (as DataComp does)."""

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreRule:
        if self.among == "all" and self.top_fraction is None:
            raise ValueError("among needs top_fraction; set it or remove among")
        if (self.min is None and self.max is None) == (self.top_fraction is None):
            raise ValueError("set min, max or both, or set top_fraction")
        return self


class SelectRecipe(StrictModel):
    """Rules over the measured columns; every uid gets a decision."""

    name: Name = "default"
    """Name of the result: `<root>/selections/<name>`."""
    subset: str | None = None
    """A DataComp subset file (.npy): only its uids are kept."""
    min_words: Annotated[int, Field(ge=0)] = 0
    """Smallest number of words of a caption. Needs a captions signal."""
    min_chars: Annotated[int, Field(ge=0)] = 0
    """Smallest number of characters of a caption. Needs a captions signal."""
    languages: tuple[str, ...] | None = None
    """Kept languages of captions, ISO 639 codes; null: all. Needs a captions signal."""
    min_side: Annotated[int, Field(ge=0)] = 0
    """Smallest shorter side of an image as received, px."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of longer to shorter side; null: no limit."""
    scores: tuple[ScoreRule, ...] = ()
    """Score rules, applied in this order."""

    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder", "subset": "its content is hashed"}


class ReshardRecipe(StrictModel):
    """Kept samples -> curated shards."""

    name: Name = "train"
    """Name of the result: `<root>/curated/<name>`."""
    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    """Largest number of samples per curated shard."""
    shuffle: Literal["block", "global"] = "block"
    """block: samples are shuffled within groups of raw shards; global: over the whole data set, which writes every
    image twice."""
    shuffle_seed: int = 0
    """Seed of the shuffle."""
    raw_shards_per_group: Annotated[int, Field(gt=0)] = 16
    """Raw shards that one task reads and shuffles together."""

    not_hashed: ClassVar[Mapping[str, str]] = {"name": "names the folder"}


class CurateRecipe(StrictModel):
    """One curation: `pairloom curate RECIPE`."""

    model_config = ConfigDict(defer_build=True)  # plug-ins are imported on first use

    root: str
    """Folder or URL below which the curation writes everything."""
    source: SourcePart
    """Source of the image-caption pairs."""
    ingest: IngestRecipe = IngestRecipe()
    """Fetching and storing of images as raw shards."""
    signals: tuple[SignalPart, ...] = ()
    """Signals to measure."""
    dedupe: DedupeRecipe = DedupeRecipe()
    """Criteria for duplicates."""
    select: SelectRecipe = SelectRecipe()
    """Rules for the kept samples."""
    balance: BalanceRecipe | None = None
    """Reduction of frequent content; null: none."""
    reshard: ReshardRecipe = ReshardRecipe()
    """Writing of curated shards."""

    not_hashed: ClassVar[Mapping[str, str]] = {"root": "location of the results"}

    @field_validator("signals")
    @classmethod
    def _unique_names(cls, signals: tuple[Signal, ...]) -> tuple[Signal, ...]:
        names = [signal.name for signal in signals]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two signals have the name {name}; rename one")
        return signals

    @model_validator(mode="after")
    def _signals_fit(self) -> CurateRecipe:
        signals = {signal.name: signal for signal in self.signals}
        for signal in self.signals:
            signal.check(signals)
        if isinstance(self.balance, ClusterBalance):
            clusters = signals.get(self.balance.clusters)
            if clusters is None or not clusters.writes_clusters():
                raise ValueError(f"balance.clusters: {self.balance.clusters} is not a clusters signal; name one")
        return self

    @model_validator(mode="after")
    def _rules_have_signals(self) -> CurateRecipe:
        for rule in self.select.scores:
            self.column_of(rule)
        needs_captions = self.select.min_words or self.select.min_chars or self.select.languages
        if needs_captions and self.caption_counts is None:
            raise ValueError("select: min_words, min_chars and languages need `- kind: captions` in signals; add it")
        return self

    @model_validator(mode="after")
    def _dedupe_has_signals(self) -> CurateRecipe:
        signals = {signal.name: signal for signal in self.signals}
        self._check_keep(signals)
        hashes = self.dedupe.hashes
        if hashes and not (hashes in signals and signals[hashes].has_hashes):
            raise ValueError(f"dedupe.hashes: {hashes} is not a phash256 signal; name one")
        for where, features in self.dedupe.features_used():
            if features not in signals or signals[features].feature_model() is None:
                raise ValueError(f"dedupe.{where}.features: {features} is not a clip signal of one model; name one")
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
        """The signal with this name. Raises KeyError."""
        return {signal.name: signal for signal in self.signals}[name]

    @property
    def caption_counts(self) -> Signal | None:
        """The signal that counts words and detects languages, or None."""
        return next((signal for signal in self.signals if signal.counts_captions), None)

    @property
    def keep_column(self) -> str | None:
        """The column of `dedupe.score_signal` that decides which duplicate is kept."""
        name = self.dedupe.score_signal
        return None if name is None else _chosen_column(self.signal(name), self.dedupe.score_column)

    def column_of(self, rule: ScoreRule) -> str:
        """The column of a score rule. Raises ValueError if it does not exist or is ambiguous."""
        names = sorted(signal.name for signal in self.signals)
        if rule.signal not in names:
            raise ValueError(f"select.scores: {rule.signal} is not a signal; there are {names}")
        try:
            return _chosen_column(self.signal(rule.signal), rule.column)
        except ValueError as error:
            raise ValueError(f"select.scores: {error}") from error


def _chosen_column(signal: Signal, column: str | None) -> str:
    """The named column, or the only one. Raises ValueError if it does not exist or is ambiguous."""
    columns = signal.rule_columns()
    if column is None and len(columns) == 1:
        return columns[0]
    if column not in columns:
        raise ValueError(f"set the column of {signal.name} to one of {', '.join(columns)}")
    return str(column)


SIGNALS.used_by(CurateRecipe)
SOURCES.used_by(CurateRecipe)
