"""The dedupe part of a curate recipe: criteria for duplicates, and the choice of the kept sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name

Bits256 = Annotated[int, Field(ge=0, le=128)]  # different images differ in about 128 of 256 bits


class PerceptualRecipe(StrictModel):
    """Near-duplicates by pHash, each pair confirmed on the colour thumbnail. The search is exact."""

    bits: Literal[64, 256] = 64
    """Length of the compared pHash. 256 needs `dedupe.hashes`."""
    max_distance: Annotated[int, Field(ge=0, le=11)] = 4
    """Largest Hamming distance of the pHash, bits."""
    max_distance_256: Bits256 | None = None
    """With `bits: 64`: largest distance of the 256-bit pHash too, bits. Advised for `max_distance` above 4. Needs
    `dedupe.hashes`."""
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0
    """Largest mean absolute difference of the two thumbnails, of 255."""

    @model_validator(mode="after")
    def _one_limit(self) -> PerceptualRecipe:
        if self.bits == 256 and self.max_distance_256 is not None:
            raise ValueError("max_distance_256 confirms 64-bit hashes; with bits: 256 set max_distance alone")
        return self


class SemanticRecipe(StrictModel):
    """Semantic duplicates (SemDeDup, arXiv 2303.09540): near features, compared inside k-means clusters."""

    features: Name
    """Name of a clip signal with one model."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine of image features above which two images are duplicates."""
    policy: Literal["greedy", "official", "components"] = "greedy"
    """Choice of the kept image. greedy: drop an image near a kept one. official: as the paper's code, drop an image
    near any image farther from the centroid. components: keep one image per connected component."""
    num_clusters: Annotated[int, Field(gt=0)] | None = None
    """Number of k-means clusters; null: one per 1,000 images."""


class PreferRecipe(StrictModel):
    """Values of a column that are preferred when duplicates are dropped, such as licences."""

    column: str
    """A column of `source.keep_columns`."""
    order: Annotated[tuple[str, ...], Field(min_length=1)]
    """Preferred values, the best first; all other values come after them."""


class PlaceholderRecipe(StrictModel):
    """One image under many unlike captions from many domains ("image not found"): all its samples are dropped."""

    min_captions: Annotated[int, Field(ge=2)] = 10
    """Smallest number of different captions, after normalisation."""
    min_domains: Annotated[int, Field(ge=1)] = 5
    """Smallest number of different domains."""
    max_caption_similarity: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Largest mean Jaccard similarity of the captions' 4-grams."""


class DecontaminateRecipe(StrictModel):
    """An evaluation set: samples with an image near one of its images are dropped."""

    path: str
    """A raw folder, tars, or a folder of images."""
    perceptual: Annotated[int, Field(ge=0, le=11)] | None = 6
    """Largest Hamming distance of the 64-bit pHash, bits; null: hashes are not compared."""
    max_distance_256: Bits256 | None = None
    """Largest distance of the 256-bit pHash too, bits. Needs `dedupe.hashes`."""
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0
    """Largest mean absolute difference of the two thumbnails, of 255."""
    semantic: Annotated[float, Field(gt=0, le=1)] | None = None
    """Cosine of image features above which an image is dropped; null: features are not compared."""
    features: Name | None = None
    """Name of a clip signal with one model, for `semantic`; null: that of `dedupe.semantic`."""

    @model_validator(mode="after")
    def _compares_something(self) -> DecontaminateRecipe:
        if self.perceptual is None and self.semantic is None:
            raise ValueError("set perceptual, semantic or both")
        return self


class DedupeRecipe(StrictModel):
    """Criteria for duplicates, and the choice of the kept sample."""

    name: Name = "default"
    """Name of the result: `<root>/dedupe/<name>`."""
    exact: bool = True
    """Drop samples with equal image (bytes or pixels) and equal caption."""
    hashes: Name | None = None
    """Name of a phash256 signal, for 256-bit distances."""
    same_image_captions: Literal["keep_all", "keep_one"] = "keep_all"
    """Different captions of one image: keep all of them, or one."""
    perceptual: PerceptualRecipe | None = PerceptualRecipe()
    """Near-duplicates by pHash; null: none are dropped."""
    placeholders: PlaceholderRecipe | None = None
    """Placeholder images; null: none are dropped."""
    semantic: SemanticRecipe | None = None
    """Semantic duplicates; null: none are dropped."""
    decontaminate: tuple[DecontaminateRecipe, ...] = ()
    """Evaluation sets whose images, and images near them, are dropped."""
    against: tuple[str, ...] = ()
    """Earlier raw folders: their samples are kept, and duplicates of them are dropped here."""
    prefer: PreferRecipe | None = None
    """Preferred values of a column; applied before `keep`."""
    keep: Literal["largest", "highest_score", "smallest_uid"] = "largest"
    """Choice of the kept duplicate: the most pixels as received, the highest score, or the smallest uid."""
    score_signal: Name | None = None
    """Name of the signal for `keep: highest_score`."""
    score_column: str | None = None
    """Column of `score_signal`; null: its only column."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "score_signal": "its result is hashed",
        "hashes": "its result is hashed",
        "against": "its result is hashed",
    }

    @model_validator(mode="after")
    def _score_needs_signal(self) -> DedupeRecipe:
        if (self.keep == "highest_score") != (self.score_signal is not None):
            raise ValueError("keep: highest_score and score_signal need each other; set both or neither")
        return self

    @model_validator(mode="after")
    def _distances_have_hashes(self) -> DedupeRecipe:
        needs_hashes = [rule.max_distance_256 is not None for rule in self.decontaminate]
        if self.perceptual is not None:
            needs_hashes.append(self.perceptual.bits == 256 or self.perceptual.max_distance_256 is not None)
        if any(needs_hashes) != (self.hashes is not None):
            raise ValueError("hashes (a phash256 signal) is for bits: 256 and max_distance_256; set both or neither")
        return self

    @model_validator(mode="after")
    def _rules_have_features(self) -> DedupeRecipe:
        for rule in self.decontaminate:
            if rule.semantic is not None and self.features_of(rule) is None:
                raise ValueError(f"decontaminate {rule.path}: semantic needs features; name a clip signal")
        return self

    def features_of(self, rule: DecontaminateRecipe) -> str | None:
        """The clip signal whose features a rule compares; None: it compares no features."""
        if rule.semantic is None:
            return None
        return rule.features or (self.semantic.features if self.semantic is not None else None)

    def features_used(self) -> Iterator[tuple[str, str]]:
        """(field of these settings, clip signal) of all compared features."""
        if self.semantic is not None:
            yield "semantic", self.semantic.features
        for rule in self.decontaminate:
            features = self.features_of(rule)
            if features is not None:
                yield "decontaminate", features
