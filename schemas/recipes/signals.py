"""The signals of a curate recipe: what is measured of every sample, once."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pairloom.schemas.recipes.load import StrictModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class CaptionSignals(StrictModel):
    """num_words, num_chars, language, language_score, non_word_share, junk."""

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


class QualitySignals(StrictModel):
    """sharpness, entropy, flatness of the stored image."""

    kind: Literal["quality"]
    name: Name = "quality"


class PhashSignals(StrictModel):
    """phash256: 256-bit perceptual hash of the stored image; `dedupe.hashes` names it."""

    kind: Literal["phash256"]
    name: Name = "phash256"


class CaptionDuplicateSignals(StrictModel):
    """caption_group, num_equal_captions, num_near_captions: counted over the whole data set (MinHash of 4-grams)."""

    kind: Literal["caption_duplicates"]
    name: Name = "caption_duplicates"
    threshold: Annotated[float, Field(ge=0.7, le=1)] = 0.8  # Jaccard similarity; below 0.7 too many pairs are missed


class ClassifierSignals(StrictModel):
    """score: what a Hugging Face image classifier gives for one of its labels (NSFW, watermark), 0..1."""

    kind: Literal["image_classifier"]
    name: Name
    model: str
    label: str
    batch_size: Annotated[int, Field(gt=0)] = 64


class HeadSignals(StrictModel):
    """score: a small network on the image features of a clip signal (aesthetics, NSFW heads)."""

    kind: Literal["feature_head"]
    name: Name
    features: Name  # a clip signal
    head: str  # a safetensors file


class ClusterSignals(StrictModel):
    """cluster, and near_target where a target is given: hierarchical k-means over the image features of a clip signal.

    `num_clusters` counts the clusters of each level, the finest first: [10000, 1000, 100] clusters the images, then
    the centroids of these, and so on. `centroids`, a .npy [K, D], takes the place of k-means. near_target is 1 where
    the nearest centroid is also the nearest one of an image of `target`: a .npy or .npz of features, or a folder or
    tars of images, which the model of the clip signal then scores.
    """

    kind: Literal["clusters"]
    name: Name
    features: Name  # a clip signal of one model
    num_clusters: list[Annotated[int, Field(gt=0)]] | None = None
    centroids: str | None = None
    target: str | None = None

    @model_validator(mode="after")
    def _levels_shrink(self) -> ClusterSignals:
        if (self.num_clusters is None) == (self.centroids is None):
            raise ValueError("give num_clusters or centroids, not both")
        levels = self.num_clusters or [1]
        if not levels or any(coarse >= fine for fine, coarse in pairwise(levels)):
            raise ValueError("num_clusters: the finest level comes first, and each level has fewer than the one before")
        return self


class WordListSignals(StrictModel):
    """score: 1 where a word of the caption is in a list, else 0.

    `entries` holds one word a line; with `wordnet`, the `dict` folder of Princeton's WordNet, WordNet ids (n02084071),
    and a word counts where its most common meaning is one of them (DataComp's text-based filter).
    """

    kind: Literal["word_list"]
    name: Name
    entries: str
    wordnet: str | None = None


SignalRecipe = Annotated[
    CaptionSignals
    | CaptionDuplicateSignals
    | ClipSignals
    | QualitySignals
    | PhashSignals
    | ClassifierSignals
    | HeadSignals
    | ClusterSignals
    | WordListSignals,
    Field(discriminator="kind"),
]
SCORE_COLUMNS = {
    "captions": ("num_words", "num_chars", "language_score", "non_word_share", "junk"),
    "caption_duplicates": ("num_equal_captions", "num_near_captions"),
    "clip": ("clip_score",),
    "quality": ("sharpness", "entropy", "flatness"),
    "phash256": (),
    "image_classifier": ("score",),
    "feature_head": ("score",),
    "clusters": ("near_target",),
    "word_list": ("score",),
}
"""Columns of each kind of signal that a score rule may look at."""
