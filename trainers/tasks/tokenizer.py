"""The tokenizer of a run: the folder that its task names, or one that is trained on the captions, once per run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pairloom.schemas.recipes.task import TokenizerFamily
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.data.dataset import ConversationDataset, CuratedDataset, Dataset
from pairloom.trainers.text.bpe_tokenizer import train_tokenizer
from pairloom.trainers.text.siglip2_tokenizer import train_siglip2_tokenizer

MAX_TEXT_LENGTH = 512  # tokens; a model with fewer positions cuts earlier
_TRAIN = {"byte-level": train_tokenizer, "siglip2": train_siglip2_tokenizer}


def prepare_tokenizer(recipe: TrainRecipe, datasets: Sequence[Dataset], run_dir: Path) -> str | None:
    """Folder of the run's tokenizer; one that is trained lies in the run folder. Raises UserError."""
    trained = recipe.tokenizer.train

    def train(family: TokenizerFamily) -> str:
        assert trained is not None
        folder = run_dir / "tokenizer"
        if not folder.exists():
            texts = islice(_texts(datasets), trained.max_captions)
            _TRAIN[family](texts, trained.vocab_size, str(folder), MAX_TEXT_LENGTH)
        return str(folder)

    return recipe.task.tokenizer_folder(recipe, train)


def _texts(datasets: Sequence[Dataset]) -> Iterator[str]:
    for dataset in datasets:
        if isinstance(dataset, ConversationDataset):
            yield from dataset.texts()
        elif isinstance(dataset, CuratedDataset):
            for shard in range(len(dataset.shard_sizes)):
                yield from dataset.captions(shard)
