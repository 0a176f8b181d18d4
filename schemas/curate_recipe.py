"""The curate recipe: everything that turns a source into a curated data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.recipe_io import StrictModel
from schemas.signal_recipe import SCORE_COLUMNS, HeadSignals, Name, SignalRecipe

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


class PerceptualRecipe(StrictModel):
    """Near-duplicates by 64-bit pHash, each pair confirmed on a colour thumbnail."""

    max_distance: Annotated[int, Field(ge=0, le=11)] = 4  # bits
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0  # mean absolute, of 255, on the thumbnail


class SemanticRecipe(StrictModel):
    """Images whose features agree (SemDeDup), compared inside k-means clusters."""

    features: Name  # a clip signal of one model
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95  # cosine; above it two images are duplicates
    policy: Literal["greedy", "official", "components"] = "greedy"
    num_clusters: Annotated[int, Field(gt=0)] | None = None  # null: one for each 1,000 images


class PreferRecipe(StrictModel):
    """Values of a column that are kept before others, such as licences."""

    column: str  # of source.keep_columns
    order: Annotated[list[str], Field(min_length=1)]  # the best first; all other values come after these


class PlaceholderRecipe(StrictModel):
    """One image under many unlike captions from many domains ("image not found"): all of its samples go."""

    min_captions: Annotated[int, Field(ge=2)] = 10  # different ones, after normalisation
    min_domains: Annotated[int, Field(ge=1)] = 5
    max_caption_similarity: Annotated[float, Field(ge=0, le=1)] = 0.3  # mean over pairs, of their 4-grams (Jaccard)


class DecontaminateRecipe(StrictModel):
    """An evaluation set whose images, and what looks like them, leave the training data."""

    path: str  # a raw folder, tars, or a folder of images
    perceptual: Annotated[int, Field(ge=0, le=11)] = 6  # bits
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0  # mean absolute, of 255, on the thumbnail


class DedupeRecipe(StrictModel):
    """Which samples duplicate which, and which one of a group is kept."""

    name: Name = "default"
    exact: bool = True
    same_image_captions: Literal["keep_all", "keep_one"] = "keep_all"
    perceptual: PerceptualRecipe | None = PerceptualRecipe()
    placeholders: PlaceholderRecipe | None = None
    semantic: SemanticRecipe | None = None
    decontaminate: list[DecontaminateRecipe] = []
    against: list[str] = []  # earlier raw folders: what they hold is kept, and our copies of it are dropped
    prefer: PreferRecipe | None = None  # comes before `keep`
    keep: Literal["largest", "highest_score", "smallest_uid"] = "largest"
    score_signal: Name | None = None  # for keep: highest_score

    @model_validator(mode="after")
    def _score_needs_signal(self) -> DedupeRecipe:
        if (self.keep == "highest_score") != (self.score_signal is not None):
            raise ValueError("keep: highest_score and score_signal go together")
        return self


class ScoreRule(StrictModel):
    """Keep by one column of a signal: from `min` to `max`, or the best `top_fraction` of what is left."""

    signal: Name
    column: str | None = None  # needed where the signal has several
    min: float | None = None
    max: float | None = None
    top_fraction: Fraction | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreRule:
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


class BalanceRecipe(StrictModel):
    """Thin out what is common, after all other rules: MetaCLIP's balancing over a list of entries."""

    kind: Literal["metaclip"]
    name: Name = "default"
    entries: str | None = None  # a text file, one a line; null: words and pairs of words of the captions themselves
    min_count: Annotated[int, Field(gt=0)] = 20  # of a word or pair, to become an entry; without a file
    min_information: float = 3.0  # bits of pointwise mutual information, for a pair to become an entry; without a file
    t: Annotated[int, Field(gt=0)] = 20_000  # matches up to which an entry is kept whole; 20k for 400M pairs
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


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
    def _rules_have_signals(self) -> CurateRecipe:
        kinds = {signal.name: signal.kind for signal in self.signals}
        for rule in self.select.scores:
            if rule.signal not in kinds:
                raise ValueError(f"select.scores: {rule.signal} is not a signal; there are {sorted(kinds)}")
            self.column_of(rule)
        if self.dedupe.score_signal and kinds.get(self.dedupe.score_signal) != "clip":
            raise ValueError(f"dedupe.score_signal: {self.dedupe.score_signal} is not a clip signal")
        for signal in self.signals:
            if isinstance(signal, HeadSignals) and kinds.get(signal.features) != "clip":
                raise ValueError(f"signals.{signal.name}.features: {signal.features} is not a clip signal")
        semantic = self.dedupe.semantic
        whole = {signal.name for signal in self.signals if signal.kind == "clip" and signal.model is not None}
        if semantic is not None and semantic.features not in whole:
            raise ValueError(f"dedupe.semantic.features: {semantic.features} is not a clip signal of one model")
        if self.dedupe.prefer is not None and self.dedupe.prefer.column not in self.source.keep_columns:
            raise ValueError(f"dedupe.prefer.column: add {self.dedupe.prefer.column} to source.keep_columns")
        needs_captions = self.select.min_words or self.select.min_chars or self.select.languages
        if needs_captions and "captions" not in kinds.values():
            raise ValueError("select: min_words, min_chars and languages need `- kind: captions` in signals")
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
