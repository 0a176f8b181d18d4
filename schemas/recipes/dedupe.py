"""The dedupe settings of a curate recipe: which samples duplicate which, and which one of a group is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name

Bits256 = Annotated[int, Field(ge=0, le=128)]  # of a 256-bit pHash; unlike images differ by about 128


class PerceptualRecipe(StrictModel):
    """Near-duplicates by pHash, each pair confirmed on a colour thumbnail.

    `max_distance` counts bits of the hash of `bits` bits; no pair within it is missed. With `max_distance_256` a pair
    of 64-bit hashes must be that near in their 256 bits too: advised for radii above 4. Both take `dedupe.hashes`.
    """

    bits: Literal[64, 256] = 64
    max_distance: Annotated[int, Field(ge=0, le=11)] = 4  # bits
    max_distance_256: Bits256 | None = None
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0  # mean absolute, of 255, on the thumbnail

    @model_validator(mode="after")
    def _one_limit(self) -> PerceptualRecipe:
        if self.bits == 256 and self.max_distance_256 is not None:
            raise ValueError("max_distance_256 confirms 64-bit hashes; with bits: 256 give max_distance alone")
        return self


class SemanticRecipe(StrictModel):
    """Images whose features agree (SemDeDup), compared inside k-means clusters."""

    features: Name  # a clip signal of one model
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95  # cosine; above it two images are duplicates
    policy: Literal["greedy", "official", "components"] = "greedy"
    num_clusters: Annotated[int, Field(gt=0)] | None = None  # null: one for each 1,000 images


class PreferRecipe(StrictModel):
    """Values of a column that are kept before others, such as licences."""

    column: str  # of source.keep_columns
    order: Annotated[tuple[str, ...], Field(min_length=1)]  # the best first; all other values come after these


class PlaceholderRecipe(StrictModel):
    """One image under many unlike captions from many domains ("image not found"): all of its samples go."""

    min_captions: Annotated[int, Field(ge=2)] = 10  # different ones, after normalisation
    min_domains: Annotated[int, Field(ge=1)] = 5
    max_caption_similarity: Annotated[float, Field(ge=0, le=1)] = 0.3  # mean over pairs, of their 4-grams (Jaccard)


class DecontaminateRecipe(StrictModel):
    """An evaluation set whose images, and what looks like them, leave the training data."""

    path: str  # a raw folder, tars, or a folder of images
    perceptual: Annotated[int, Field(ge=0, le=11)] | None = 6  # bits of the 64-bit pHash
    max_distance_256: Bits256 | None = None  # confirms `perceptual` by the 256-bit pHash; takes dedupe.hashes
    max_colour_difference: Annotated[float, Field(ge=0)] = 12.0  # mean absolute, of 255, on the thumbnail
    semantic: Annotated[float, Field(gt=0, le=1)] | None = None  # cosine of image features; above it an image goes
    features: Name | None = None  # a clip signal of one model, for `semantic`; null: that of dedupe.semantic

    @model_validator(mode="after")
    def _looks_at_something(self) -> DecontaminateRecipe:
        if self.perceptual is None and self.semantic is None:
            raise ValueError("give perceptual, semantic or both")
        return self


class DedupeRecipe(StrictModel):
    """Which samples duplicate which, and which one of a group is kept."""

    name: Name = "default"
    exact: bool = True
    hashes: Name | None = None  # a phash256 signal, for 256-bit distances
    same_image_captions: Literal["keep_all", "keep_one"] = "keep_all"
    perceptual: PerceptualRecipe | None = PerceptualRecipe()
    placeholders: PlaceholderRecipe | None = None
    semantic: SemanticRecipe | None = None
    decontaminate: tuple[DecontaminateRecipe, ...] = ()
    against: tuple[str, ...] = ()  # earlier raw folders: what they hold is kept, and our copies of it are dropped
    prefer: PreferRecipe | None = None  # comes before `keep`
    keep: Literal["largest", "highest_score", "smallest_uid"] = "largest"
    score_signal: Name | None = None  # for keep: highest_score
    score_column: str | None = None  # of score_signal; null: its only column

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "score_signal": "counts by its result",
        "hashes": "counts by its result",
        "against": "counts by its result",
    }

    @model_validator(mode="after")
    def _score_needs_signal(self) -> DedupeRecipe:
        if (self.keep == "highest_score") != (self.score_signal is not None):
            raise ValueError("keep: highest_score and score_signal go together")
        return self

    @model_validator(mode="after")
    def _distances_have_hashes(self) -> DedupeRecipe:
        wanted = [rule.max_distance_256 is not None for rule in self.decontaminate]
        if self.perceptual is not None:
            wanted.append(self.perceptual.bits == 256 or self.perceptual.max_distance_256 is not None)
        if any(wanted) != (self.hashes is not None):
            raise ValueError("hashes (a phash256 signal) goes together with bits: 256 or max_distance_256")
        return self

    @model_validator(mode="after")
    def _rules_have_features(self) -> DedupeRecipe:
        for rule in self.decontaminate:
            if rule.semantic is not None and self.features_of(rule) is None:
                raise ValueError(f"decontaminate {rule.path}: semantic needs features, a clip signal")
        return self

    def features_of(self, rule: DecontaminateRecipe) -> str | None:
        """The clip signal whose features a rule compares; None where it compares none."""
        if rule.semantic is None:
            return None
        return rule.features or (self.semantic.features if self.semantic is not None else None)

    def features_used(self) -> Iterator[tuple[str, str]]:
        """Every clip signal whose features are compared, and by which part of these settings."""
        if self.semantic is not None:
            yield "semantic", self.semantic.features
        for rule in self.decontaminate:
            features = self.features_of(rule)
            if features is not None:
                yield "decontaminate", features
