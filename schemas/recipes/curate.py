"""The curate recipe: everything that turns a source into a curated data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pairloom.schemas.recipes.balance import BalanceRecipe, ClusterBalance
from pairloom.schemas.recipes.dedupe import DedupeRecipe
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import SCORE_COLUMNS, ClusterSignals, HeadSignals, Name, SignalRecipe

DEFAULT_CAPTION_COLUMN = "caption"
Fraction = Annotated[float, Field(gt=0, le=1)]


class SourceRecipe(StrictModel):
    """Where the pairs come from.

    `path` is a file, a folder, a glob or any fsspec URL, or a list of them.

    - `url_table`: csv, tsv, json, jsonl, parquet, each also .gz or .zst.
    - `webdataset`: tars of any tool, such as img2dataset's and DataComp's; they are used where they lie, never copied.
    - `parquet_images`: parquet with image bytes, or `{bytes, path}` structs as Hugging Face writes them.
    - `folder`: images with a .txt of the same name each, or with a table or annotation file: `metadata.csv` and
      `metadata.jsonl` of Hugging Face's imagefolder, COCO's `captions_*.json`, Flickr's `*.token` and `results.csv`,
      Karpathy's `dataset_*.json`. Then `path` may be that file itself, with `images` the folder that its names are
      relative to (default: the folder of the file).

    A list of captions counts as that many rows, and so do several caption columns.
    """

    kind: Literal["url_table", "webdataset", "parquet_images", "folder"]
    path: str | list[str]
    images: str | None = None  # folder, parquet_images: where the image files lie
    name: Name = "main"
    url_column: str = "url"
    caption_column: str | Annotated[list[str], Field(min_length=1)] = DEFAULT_CAPTION_COLUMN
    image_column: str = "image"  # parquet_images, folder
    keep_columns: list[str] = []
    blur_boxes_column: str | None = None  # [[x_min, y_min, x_max, y_max], ...] such as DataComp's face_bboxes
    blur_boxes_unit: Literal["fractions", "pixels"] = "fractions"  # of the sides; pixels: of the upright image

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns that hold captions."""
        return (self.caption_column,) if isinstance(self.caption_column, str) else tuple(self.caption_column)

    @model_validator(mode="after")
    def _fits_the_kind(self) -> SourceRecipe:
        if self.images is not None and self.kind not in ("folder", "parquet_images"):
            raise ValueError(f"images: kind {self.kind} has no image files; leave it out")
        if self.blur_boxes_column is not None and self.kind == "webdataset":
            raise ValueError("blur_boxes_column: tars stay as they are, so their images cannot be blurred")
        if self.blur_boxes_column and self.kind == "url_table" and self.blur_boxes_column not in self.keep_columns:
            raise ValueError(f"blur_boxes_column: add {self.blur_boxes_column} to keep_columns, a retry blurs by it")
        return self

    @model_validator(mode="after")
    def _captions_are_told_apart(self) -> SourceRecipe:
        several = self.caption_columns
        if len(several) > 1 and self.kind == "webdataset":
            raise ValueError("caption_column: a sample of a tar has one caption; name one field of its JSON")
        if len(set(several)) < len(several):
            raise ValueError("caption_column: a column is there twice")
        if len(several) > 1 and "caption_column" in self.keep_columns:
            raise ValueError(
                "keep_columns: with several caption columns, caption_column says which one a row came from"
            )
        return self


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
    disallowed_directives: list[str] = ["noai", "noimageai", "noindex", "noimageindex"]
    user_agent: str | None = None
    allow_private_addresses: bool = False


class IngestRecipe(StrictModel):
    """Source rows -> raw shards."""

    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    max_caption_chars: Annotated[int, Field(gt=0)] = 5_000
    image: ImageRecipe = ImageRecipe()
    fetch: FetchRecipe = FetchRecipe()


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
    languages: list[str] | None = None
    min_side: Annotated[int, Field(ge=0)] = 0  # px, of the image as received
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    scores: list[ScoreRule] = []


class ReshardRecipe(StrictModel):
    """Kept samples -> curated shards."""

    name: Name = "train"
    samples_per_shard: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    shuffle: Literal["block", "global"] = "block"  # global: all samples mixed, every image written twice
    shuffle_seed: int = 0
    raw_shards_per_group: Annotated[int, Field(gt=0)] = 16  # read whole and permuted together


class CurateRecipe(StrictModel):
    """One curation: `pairloom curate RECIPE`."""

    root: str
    source: SourceRecipe
    ingest: IngestRecipe = IngestRecipe()
    signals: list[SignalRecipe] = []
    dedupe: DedupeRecipe = DedupeRecipe()
    select: SelectRecipe = SelectRecipe()
    balance: BalanceRecipe | None = None
    reshard: ReshardRecipe = ReshardRecipe()

    @field_validator("signals")
    @classmethod
    def _unique_names(cls, signals: list[SignalRecipe]) -> list[SignalRecipe]:
        names = [signal.name for signal in signals]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two signals are called {name}")
        return signals

    @model_validator(mode="after")
    def _signals_have_features(self) -> CurateRecipe:
        clip = {signal.name: signal for signal in self.signals if signal.kind == "clip"}
        for signal in self.signals:
            if isinstance(signal, HeadSignals | ClusterSignals) and signal.features not in clip:
                raise ValueError(f"signals.{signal.name}.features: {signal.features} is not a clip signal")
            if isinstance(signal, ClusterSignals) and clip[signal.features].model is None:
                raise ValueError(f"signals.{signal.name}.features: {signal.features} is not a clip signal of one model")
        clusters = {signal.name for signal in self.signals if signal.kind == "clusters"}
        if isinstance(self.balance, ClusterBalance) and self.balance.clusters not in clusters:
            raise ValueError(f"balance.clusters: {self.balance.clusters} is not a clusters signal")
        return self

    @model_validator(mode="after")
    def _rules_have_signals(self) -> CurateRecipe:
        kinds = {signal.name: signal.kind for signal in self.signals}
        for rule in self.select.scores:
            if rule.signal not in kinds:
                raise ValueError(f"select.scores: {rule.signal} is not a signal; there are {sorted(kinds)}")
            self.column_of(rule)
        needs_captions = self.select.min_words or self.select.min_chars or self.select.languages
        if needs_captions and "captions" not in kinds.values():
            raise ValueError("select: min_words, min_chars and languages need `- kind: captions` in signals")
        return self

    @model_validator(mode="after")
    def _dedupe_has_signals(self) -> CurateRecipe:
        kinds = {signal.name: signal.kind for signal in self.signals}
        whole = {signal.name for signal in self.signals if signal.kind == "clip" and signal.model is not None}
        if self.dedupe.score_signal and kinds.get(self.dedupe.score_signal) != "clip":
            raise ValueError(f"dedupe.score_signal: {self.dedupe.score_signal} is not a clip signal")
        if self.dedupe.hashes and kinds.get(self.dedupe.hashes) != "phash256":
            raise ValueError(f"dedupe.hashes: {self.dedupe.hashes} is not a phash256 signal")
        for where, features in self.dedupe.features_used():
            if features not in whole:
                raise ValueError(f"dedupe.{where}.features: {features} is not a clip signal of one model")
        if self.dedupe.prefer is not None and self.dedupe.prefer.column not in self.source.keep_columns:
            raise ValueError(f"dedupe.prefer.column: add {self.dedupe.prefer.column} to source.keep_columns")
        return self

    def column_of(self, rule: ScoreRule) -> str:
        """The column that a score rule looks at. Raises ValueError where it does not exist or is not clear."""
        kind = next(signal.kind for signal in self.signals if signal.name == rule.signal)
        columns = SCORE_COLUMNS[kind]
        if rule.column is None and len(columns) == 1:
            return columns[0]
        if rule.column not in columns:
            raise ValueError(f"select.scores: give the column of {rule.signal}: {', '.join(columns)}")
        return str(rule.column)
