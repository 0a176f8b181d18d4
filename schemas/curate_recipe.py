"""The curate recipe: everything that turns a source into a curated data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.recipe_io import StrictModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class SourceRecipe(StrictModel):
    """Where the pairs come from."""

    kind: Literal["url_table", "webdataset", "parquet_images", "folder"]
    path: str | list[str]
    name: Name = "main"
    url_column: str = "url"
    caption_column: str = "caption"
    image_column: str = "image"  # parquet_images
    keep_columns: list[str] = []


class ImageRecipe(StrictModel):
    """How images are resized and stored, and which are refused."""

    resize: Literal["border", "center_crop", "keep_ratio", "keep_ratio_largest", "none"] = "keep_ratio"
    size: Annotated[int, Field(gt=0)] = 256  # px
    only_if_bigger: bool = True  # smaller images keep their original bytes
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
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


class CaptionSignals(StrictModel):
    """num_words, num_chars, language, language_score."""

    kind: Literal["captions"]
    name: Name = "captions"


class ClipSignals(StrictModel):
    """Image and text features and clip_score of a Hugging Face folder, or out of fold from several."""

    kind: Literal["clip"]
    name: Name
    model: str | None = None
    models: list[str] | None = None  # one a fold; each scores the folds it was not trained on
    batch_size: Annotated[int, Field(gt=0)] = 64

    @model_validator(mode="after")
    def _one_of_model_and_models(self) -> ClipSignals:
        if (self.model is None) == (self.models is None):
            raise ValueError("give model (one folder) or models (one folder a fold), not both")
        if self.models is not None and len(self.models) < 2:
            raise ValueError("models needs at least two folders, one a fold; for one use model")
        return self


SignalRecipe = Annotated[CaptionSignals | ClipSignals, Field(discriminator="kind")]


class PerceptualRecipe(StrictModel):
    """Near-duplicates by 64-bit pHash, each pair confirmed on a colour thumbnail."""

    max_distance: Annotated[int, Field(ge=0, le=11)] = 4  # bits
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0  # mean absolute, of 255, on the thumbnail


class DedupeRecipe(StrictModel):
    """Which samples duplicate which, and which one of a group is kept."""

    name: Name = "default"
    exact: bool = True
    same_image_captions: Literal["keep_all", "keep_one"] = "keep_all"
    perceptual: PerceptualRecipe | None = PerceptualRecipe()
    keep: Literal["largest", "highest_score", "smallest_uid"] = "largest"
    score_signal: Name | None = None  # for keep: highest_score

    @model_validator(mode="after")
    def _score_needs_signal(self) -> DedupeRecipe:
        if (self.keep == "highest_score") != (self.score_signal is not None):
            raise ValueError("keep: highest_score and score_signal go together")
        return self


class ScoreRule(StrictModel):
    """Keep by clip_score of one signal: at least `min`, or the best `top_fraction` of what is left."""

    signal: Name
    min: float | None = None
    top_fraction: Fraction | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreRule:
        if (self.min is None) == (self.top_fraction is None):
            raise ValueError("give min or top_fraction, one of them")
        return self


class SelectRecipe(StrictModel):
    """Thresholds over the measured columns; every uid gets a decision."""

    name: Name = "default"
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
    shuffle: Literal["block"] = "block"
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
        scored = {signal.name for signal in self.signals if signal.kind == "clip"}
        for rule in self.select.scores:
            if rule.signal not in scored:
                raise ValueError(f"select.scores: {rule.signal} is not a clip signal; there are {sorted(scored)}")
        if self.dedupe.score_signal and self.dedupe.score_signal not in scored:
            raise ValueError(f"dedupe.score_signal: {self.dedupe.score_signal} is not a clip signal")
        needs_captions = self.select.min_words or self.select.min_chars or self.select.languages
        if needs_captions and not any(signal.kind == "captions" for signal in self.signals):
            raise ValueError("select: min_words, min_chars and languages need `- kind: captions` in signals")
        return self
