"""Recipe part of the contrastive task. It imports no torch, so that recipes are read quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.task import TaskRecipe, TrainTokenizer
from pairloom.schemas.storage import storage

if TYPE_CHECKING:
    from pairloom.schemas.recipes.train import TrainRecipe
    from pairloom.trainers.tasks.contrastive import ContrastiveTask


class ContrastiveRecipe(TaskRecipe):
    """Image and text towers with a CLIP or SigLIP loss."""

    kind: Literal["contrastive"]
    loss: Literal["clip", "siglip"]
    initial_logit_scale: float | None = None
    """Logarithm of the scale; null: ln(1/0.07) for clip, ln 10 for siglip."""
    initial_logit_bias: float = -10.0
    """siglip only."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an image's patches that the vision tower does not see."""

    def check(self, recipe: TrainRecipe) -> None:
        """The model is a pair of towers."""
        model = recipe.model
        if model.llava is not None:
            raise ValueError("model.llava belongs to task.kind: llava")
        if model.image_size is not None and not (recipe.init_from or model.path or model.dual):
            raise ValueError(
                "model.image_size resizes a contrastive model that is loaded (model.path, model.dual, init_from)"
            )
        if model.num_patches and model.dual:
            raise ValueError("model.num_patches (NaFlex) belongs to a SigLIP: model.preset, model.path or init_from")
        if "vision" in model.locked and self.patch_dropout:
            raise ValueError("task.patch_dropout: the vision tower is locked")

    def tokenizer_folder(self, recipe: TrainRecipe, train: TrainTokenizer) -> str | None:
        """That of the export the run begins with, the recipe's, or that beside the model."""
        if recipe.init_from and _has_tokenizer(recipe.init_from):
            return recipe.init_from
        if recipe.model.path and recipe.tokenizer.train:
            raise RecipeError(
                "tokenizer.train: the model of model.path has learned another tokenizer's ids; name its path"
            )
        if recipe.tokenizer.train is not None and recipe.tokenizer.path is None:
            from pairloom.trainers.models.presets import is_siglip2

            if is_siglip2(recipe.model):
                return train("siglip2")
        folder = super().tokenizer_folder(recipe, train)
        if folder is not None:
            return folder
        beside = [recipe.model.path, recipe.model.dual.text if recipe.model.dual else None]
        return next((folder for folder in beside if folder and _has_tokenizer(folder)), None)

    def build(self, recipe: TrainRecipe, tokenizer_folder: str | None) -> ContrastiveTask:
        """The task. Raises UserError."""
        from pairloom.trainers.data.dataset import is_conversations
        from pairloom.trainers.tasks.contrastive import ContrastiveTask

        if tokenizer_folder is None:
            raise RecipeError("tokenizer: give path, or train, or a model folder that has one")
        for source in recipe.data.train:
            if is_conversations(source):
                raise RecipeError(
                    f"data.train: contrastive tasks take curated data sets, not conversations: {source.path}"
                )
        return ContrastiveTask(recipe, tokenizer_folder)


def _has_tokenizer(folder: str) -> bool:
    return storage.exists(storage.join(folder, "tokenizer_config.json"))
