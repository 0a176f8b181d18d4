"""The signals of a curate recipe: what is measured of every sample, once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.recipe_io import StrictModel

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


SignalRecipe = Annotated[
    CaptionSignals | ClipSignals | QualitySignals | ClassifierSignals | HeadSignals, Field(discriminator="kind")
]
SCORE_COLUMNS = {
    "captions": ("num_words", "num_chars", "language_score", "non_word_share", "junk"),
    "clip": ("clip_score",),
    "quality": ("sharpness", "entropy", "flatness"),
    "image_classifier": ("score",),
    "feature_head": ("score",),
}
"""Columns of each kind of signal that a score rule may look at."""
