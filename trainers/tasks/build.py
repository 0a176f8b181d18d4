"""Recipe -> task, by type; and the tokenizer that the task needs, made from the data once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.train import ContrastiveTask as ContrastiveRecipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage
from pairloom.trainers.data.dataset import ConversationDataset, CuratedDataset, Dataset, is_conversations
from pairloom.trainers.models.presets import is_siglip2
from pairloom.trainers.task import Task
from pairloom.trainers.text.bpe_tokenizer import train_tokenizer
from pairloom.trainers.text.siglip2_tokenizer import train_siglip2_tokenizer

PRESET_TEXT_LENGTH = 512  # tokens; models with fewer places cut earlier


def build_task(recipe: TrainRecipe, tokenizer_folder: str | None) -> Task:
    """The task that a recipe describes. Raises UserError."""
    if isinstance(recipe.task, ContrastiveRecipe):
        from pairloom.trainers.tasks.contrastive import ContrastiveTask

        if tokenizer_folder is None:
            raise RecipeError("tokenizer: give path, or train, or a model folder that has one")
        for source in recipe.data.train:
            if is_conversations(source):
                raise RecipeError(
                    f"data.train: contrastive tasks take curated data sets, not conversations: {source.path}"
                )
        return ContrastiveTask(recipe, tokenizer_folder)
    from pairloom.trainers.tasks.llava import build_llava_task

    return build_llava_task(recipe, tokenizer_folder)


def prepare_tokenizer(recipe: TrainRecipe, datasets: Sequence[Dataset], run_dir: Path) -> str | None:
    """The tokenizer's folder: that of the export a run begins with, one that is named, one made from the data (once a
    run), or the one that lies with the model.
    """
    is_contrastive = isinstance(recipe.task, ContrastiveRecipe)
    if is_contrastive and recipe.init_from and _has_tokenizer(recipe.init_from):
        return recipe.init_from
    if is_contrastive and recipe.model.path and recipe.tokenizer.train:
        raise RecipeError("tokenizer.train: the model of model.path has learned another tokenizer's ids; name its path")
    if recipe.tokenizer.path is not None:
        return recipe.tokenizer.path
    if recipe.tokenizer.train is not None:
        folder = run_dir / "tokenizer"
        if not folder.exists():
            texts = _limited(_texts(datasets), recipe.tokenizer.train.max_captions)
            train = train_siglip2_tokenizer if is_siglip2(recipe.model) else train_tokenizer
            train(texts, recipe.tokenizer.train.vocab_size, str(folder), PRESET_TEXT_LENGTH)
        return str(folder)
    if is_contrastive:
        beside = [recipe.model.path, recipe.model.dual.text if recipe.model.dual else None]
        return next((folder for folder in beside if folder and _has_tokenizer(folder)), None)
    return None


def _has_tokenizer(folder: str) -> bool:
    return storage.exists(storage.join(folder, "tokenizer_config.json"))


def _texts(datasets: Sequence[Dataset]) -> Iterator[str]:
    for dataset in datasets:
        if isinstance(dataset, ConversationDataset):
            yield from dataset.texts()
        elif isinstance(dataset, CuratedDataset):
            for shard in range(len(dataset.shard_sizes)):
                yield from dataset.captions(shard)


def _limited(texts: Iterable[str], count: int) -> Iterator[str]:
    for _, text in zip(range(count), texts, strict=False):
        yield text
