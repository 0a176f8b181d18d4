"""Recipe parts of the built-in evaluations. The module does not import torch, so that recipes load quickly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pairloom.schemas.recipes.evaluation import EvaluationRecipe

ImageMode = Literal["real", "none", "wrong"]


class BuiltInEvaluation(EvaluationRecipe):
    """The fields of all built-in kinds: recipes that pairloom has resolved name each of them."""

    num_patches: Annotated[int, Field(gt=0)] | None = None
    """NaFlex: largest number of patches of an image; null: the number in the export."""
    train_data: str | None = None
    """linear-probe: images that the classifier is fitted to."""
    classes: str | None = None
    """zero-shot, linear-probe: file of class names; null: the one beside the data."""
    templates: str | None = None
    """zero-shot: file of sentences with {} for the class name; null: the one beside the data."""

    @model_validator(mode="after")
    def _fits_kind(self) -> BuiltInEvaluation:
        if (self.train_data is not None) != (self.kind == "linear-probe"):
            raise ValueError("evaluate.train_data belongs to kind: linear-probe, which needs it")
        if (self.classes or self.templates) and self.kind not in ("zero-shot", "linear-probe"):
            raise ValueError(f"evaluate: {self.kind} has no classes and templates")
        if self.num_patches is not None and self.kind == "vqa":
            raise ValueError("evaluate: vqa prepares images as the model does; it has no num_patches")
        return self

    def paths(self) -> tuple[str, ...]:
        """Paths of the data and of all other files that the recipe names."""
        return tuple(path for path in (self.data, self.train_data, self.classes, self.templates) if path is not None)


class ZeroShotEvaluation(BuiltInEvaluation):
    """Zero-shot classification."""

    kind: Literal["zero-shot"]

    def run(self, model_folder: str) -> dict[str, Any]:
        """Top-1, top-5 and mean per-class accuracy, 0..1."""
        from pairloom.trainers.evaluate.class_names import ClassFiles
        from pairloom.trainers.evaluate.load import DualEncoder
        from pairloom.trainers.evaluate.zero_shot import zero_shot

        return zero_shot(
            DualEncoder(model_folder, self.num_patches), self.data, ClassFiles(self.classes, self.templates)
        )


class LinearProbeEvaluation(BuiltInEvaluation):
    """Logistic regression on image features."""

    kind: Literal["linear-probe"]

    def run(self, model_folder: str) -> dict[str, Any]:
        """Top-1, top-5 and mean per-class accuracy, 0..1."""
        from pairloom.trainers.evaluate.class_names import ClassFiles
        from pairloom.trainers.evaluate.linear_probe import linear_probe
        from pairloom.trainers.evaluate.load import DualEncoder

        files = ClassFiles(self.classes, self.templates)
        return linear_probe(DualEncoder(model_folder, self.num_patches), self.data, str(self.train_data), files)


class RetrievalEvaluation(BuiltInEvaluation):
    """Retrieval of captions by image and of images by caption."""

    kind: Literal["retrieval"]

    def run(self, model_folder: str) -> dict[str, Any]:
        """Recall at 1, 5 and 10 in both directions, 0..1, and mean and median ranks."""
        from pairloom.trainers.evaluate.load import DualEncoder
        from pairloom.trainers.evaluate.retrieval import retrieval

        return retrieval(DualEncoder(model_folder, self.num_patches), self.data)


class VqaEvaluation(BuiltInEvaluation):
    """Visual question answering by a LLaVA."""

    kind: Literal["vqa"]
    image_mode: ImageMode = "real"
    """real: show the image; none: show no image; wrong: show another one."""

    def run(self, model_folder: str) -> dict[str, Any]:
        """Exact-match accuracy, 0..1."""
        from pairloom.trainers.evaluate.load import LlavaReader
        from pairloom.trainers.evaluate.vqa import vqa

        return vqa(LlavaReader(model_folder), self.data, self.image_mode)
