"""`task: {kind: caption_length}`: the recipe part. It imports no torch, so that recipes are read quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pairloom.plugins import TaskRecipe

if TYPE_CHECKING:
    from pairloom import TrainRecipe


class CaptionLength(TaskRecipe):
    """Predict the number of words of a caption from features of its image."""

    kind: Literal["caption_length"]
    max_words: int = 64
    """Lengths are divided by this number."""

    def check(self, recipe: TrainRecipe) -> None:
        """Refuse parts of a recipe that this task has no use for."""
        if recipe.model.path is None:
            raise ValueError("model: task.kind caption_length takes model.path, a folder with a vision model")

    def build(self, recipe: TrainRecipe, tokenizer_folder: str | None) -> Any:
        """The task, on a rank."""
        from pairloom_caption_length_task import CaptionLengthTask

        return CaptionLengthTask(self, recipe)
