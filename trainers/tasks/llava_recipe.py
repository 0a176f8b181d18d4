"""Recipe part of the LLaVA task. It imports no torch, so that recipes are read quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pairloom.schemas.recipes.task import TaskRecipe

if TYPE_CHECKING:
    from pairloom.schemas.recipes.train import TrainRecipe
    from pairloom.trainers.tasks.llava import LlavaTask


class LlavaRecipe(TaskRecipe):
    """LLaVA: `align` trains the projector on captions, `instruct` the projector and the language model on dialogues."""

    kind: Literal["llava"]
    mode: Literal["align", "instruct"]
    template: Literal["plain", "vicuna_v1", "chatml", "tokenizer"] | None = None
    """Chat template; null: plain for align, vicuna_v1 for instruct."""
    max_length: Annotated[int, Field(gt=0)] = 2048
    """Tokens, image tokens included."""
    vision_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """instruct: 0 keeps the vision tower frozen."""
    blind: bool = False
    """Remove every image: the text-only twin that shows how much the images contribute."""

    def check(self, recipe: TrainRecipe) -> None:
        """The model is a LLaVA, and options of pairs of towers are not set."""
        model, optimizer = recipe.model, recipe.optimizer
        if model.preset or model.dual or model.locked:
            raise ValueError("task.kind: llava takes model.llava or model.path")
        if model.activation_checkpointing or model.compile or optimizer.layer_decay != 1:
            raise ValueError(
                "model.activation_checkpointing, model.compile and optimizer.layer_decay belong to task.kind: "
                "contrastive"
            )
        if optimizer.name == "muon":
            raise ValueError("optimizer.name: muon belongs to task.kind: contrastive")
        if model.image_size is not None:
            raise ValueError(
                "model.image_size resizes a contrastive model that is loaded (model.path, model.dual, init_from)"
            )
        if model.num_patches:
            raise ValueError("model.num_patches (NaFlex) belongs to a SigLIP: model.preset, model.path or init_from")

    def build(self, recipe: TrainRecipe, tokenizer_folder: str | None) -> LlavaTask:
        """The task. Raises UserError."""
        from pairloom.trainers.tasks.llava import build_llava_task

        return build_llava_task(recipe, tokenizer_folder)
