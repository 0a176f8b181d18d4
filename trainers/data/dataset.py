"""What is trained on: curated data sets, tars, views and files of conversations, with random access to each sample."""

from __future__ import annotations

from collections.abc import Sequence

from pairloom.schemas.conversation import Conversation, load_conversations
from pairloom.schemas.data_set.manifest import load_manifest, resolve
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.recipes.train import DataSource
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of
from pairloom.trainers.data.raw_sample import Dataset, RawSample
from pairloom.trainers.data.tar_dataset import CuratedDataset, ViewDataset
from pairloom.trainers.data.tar_index import find_tars, index_tars

__all__ = ["ConversationDataset", "CuratedDataset", "Dataset", "RawSample", "identity_of", "open_dataset"]
CACHE_BYTES = 50 << 30


def open_dataset(source: DataSource, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """The data set that a recipe names. Raises InputError."""
    return ConversationDataset(source) if is_conversations(source) else open_pairs(source, cache_bytes)


def open_pairs(source: DataSource, cache_bytes: int = CACHE_BYTES) -> CuratedDataset:
    """A curated data set, a selection over raw shards, or tars as they are. Raises InputError."""
    try:
        folder = resolve(source.path)
    except InputError as error:
        tars = find_tars(source.path)
        if not tars:
            raise InputError(f"{error}, nor tars") from error
        return CuratedDataset(source, index_tars(tars), cache_bytes)
    kind = load_manifest(folder).step
    if kind == "selections":
        return ViewDataset(source, folder, cache_bytes)
    if kind not in ("curated", "index"):
        raise InputError(f"{source.path}: is a {kind} folder; train on curated/..., selections/... or tars")
    return CuratedDataset(source, folder, cache_bytes)


def is_conversations(source: DataSource) -> bool:
    """True for a file of conversations, false for a curated data set."""
    return source.path.endswith((".json", ".jsonl"))


def identity_of(source: DataSource, dataset: Dataset) -> dict[str, str | int | None]:
    """What a checkpoint and a model card say of a data set."""
    sizes = dataset.shard_sizes
    return {
        "path": source.path,
        "manifest_hash": dataset.manifest_hash,
        "num_samples": sum(sizes),
        "num_shards": len(sizes),
    }


class ConversationDataset:
    """LLaVA conversations; their images lie in a folder, or by uid in a curated data set."""

    def __init__(self, source: DataSource) -> None:
        self._conversations = load_conversations(source.path)
        # One shard: they are in memory, and conversations about one image often lie together in the file.
        self.shard_sizes: Sequence[int] = [len(self._conversations)]
        self.manifest_hash: str | None = sha256_of(source.path)
        self._images: str | None = None
        self._curated: CuratedDataset | None = None
        if source.images is not None and _is_curated(source.images):
            self._curated = open_pairs(DataSource(path=source.images))
            self._rows = self._curated.rows_by_uid()
        elif any(conversation.image for conversation in self._conversations):
            self._images = source.images or source.path.rpartition("/")[0] or "."

    def read(self, shard: int, row: int) -> RawSample:
        """One conversation with the bytes of its image."""
        conversation = self._conversations[row]
        return RawSample(conversation.id, self._image(conversation), "", conversation)

    def read_ahead(self, shard: int) -> None:
        """Conversations are in memory; their images are read one by one."""

    def texts(self) -> list[str]:
        """Everything that is said, with the words that templates put before it, for a tokenizer."""
        return [
            f"{turn.role.upper()}: {turn.text}" for conversation in self._conversations for turn in conversation.turns
        ]

    def _image(self, conversation: Conversation) -> bytes | memoryview | None:
        name = conversation.image
        if name is None:
            return None
        if self._curated is not None:
            place = self._rows.get(name)
            if place is None:
                raise SampleError(
                    DropReason.MISSING_IMAGE, f"conversation {conversation.id}: no sample with uid {name}"
                )
            return self._curated.read(*place).image
        try:
            return storage.read_bytes(storage.join(str(self._images), name))
        except FileNotFoundError:
            raise SampleError(DropReason.MISSING_IMAGE, f"conversation {conversation.id}: no image {name}") from None


def _is_curated(path: str) -> bool:
    try:
        resolve(path)
    except InputError:
        return False
    return True
