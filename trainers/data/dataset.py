"""What is trained on: curated data sets and files of conversations, with random access to each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from schemas import storage
from schemas.conversation import Conversation, load_conversations
from schemas.drop_reason import DropReason
from schemas.errors import InputError, SampleError
from schemas.manifest import Manifest, load_manifest, resolve, table_url, tar_url
from schemas.sample import fold_of, read_table
from schemas.shard import ShardReader
from schemas.tombstones import recalled_uids
from schemas.train_recipe import DataSource
from trainers.data.recent import Recent

OPEN_SHARDS = 64  # tables and tars that one process keeps open
COLUMNS = ["uid", "caption", "duplicate_group", "offset", "num_bytes"]


@dataclass(frozen=True)
class RawSample:
    """One sample before its image is decoded; `image` is None for a conversation without one."""

    uid: str
    image: bytes | None
    caption: str
    conversation: Conversation | None = None


class Dataset(Protocol):
    """Samples by (shard, row)."""

    shard_sizes: Sequence[int]  # usable rows
    manifest_hash: str | None

    def read(self, shard: int, row: int) -> RawSample:
        """One sample. Raises SampleError (this sample) or StorageError."""
        ...


def open_dataset(source: DataSource) -> Dataset:
    """The data set that a recipe names. Raises InputError."""
    return ConversationDataset(source) if is_conversations(source) else CuratedDataset(source)


def is_conversations(source: DataSource) -> bool:
    """True for a file of conversations, false for a curated data set."""
    return source.path.endswith((".json", ".jsonl"))


class CuratedDataset:
    """A curated data set; rows of the fold that is held out are left out."""

    def __init__(self, source: DataSource) -> None:
        self._folder = resolve(source.path)
        self._manifest: Manifest = load_manifest(self._folder)
        self._hold_out = source.hold_out_fold
        self._recalled = recalled_uids(self._folder)  # their rows stay counted: the order of all others stays
        self._tables: Recent[pa.Table] = Recent(OPEN_SHARDS)
        self._readers: Recent[ShardReader] = Recent(OPEN_SHARDS)
        self.manifest_hash: str | None = self._manifest.hash()
        if self._hold_out is None:
            self.shard_sizes: Sequence[int] = [shard.num_samples for shard in self._manifest.shards]
        else:
            self.shard_sizes = [self._table(index).num_rows for index in range(len(self._manifest.shards))]
        if not sum(self.shard_sizes):
            raise InputError(f"{source.path}: holds no sample to train on")

    def read(self, shard: int, row: int) -> RawSample:
        """One sample with the bytes of its image. Raises SampleError for one that was recalled."""
        values = self._table(shard).slice(row, 1).to_pylist()[0]
        if values["uid"] in self._recalled:
            raise SampleError(DropReason.RECALLED, f"uid {values['uid']} was recalled after this data set was made")
        reader = self._readers.get(shard, lambda: ShardReader(tar_url(self._folder, self._manifest.shards[shard])))
        image = reader.read(values["offset"], values["num_bytes"])
        return RawSample(values["uid"], image, values["caption"])

    def captions(self, shard: int) -> list[str]:
        """All captions of a shard but those that were recalled."""
        rows = self._table(shard).select(["uid", "caption"]).to_pylist()
        return [row["caption"] for row in rows if row["uid"] not in self._recalled]

    def rows_by_uid(self) -> dict[str, tuple[int, int]]:
        """uid -> (shard, row) of every sample."""
        return {
            uid: (shard, row)
            for shard in range(len(self._manifest.shards))
            for row, uid in enumerate(self._table(shard)["uid"].to_pylist())
        }

    def _table(self, shard: int) -> pa.Table:
        return self._tables.get(shard, lambda: self._read_table(shard))

    def _read_table(self, shard: int) -> pa.Table:
        table = read_table(table_url(self._folder, self._manifest.shards[shard].name), COLUMNS)
        if self._hold_out is None:
            return table
        held_out, num_folds = self._hold_out
        rows = table.select(["uid", "duplicate_group"]).to_pylist()
        folds = [fold_of(row["duplicate_group"] or row["uid"], num_folds) for row in rows]
        return table.filter(pa.array(np.array(folds) != held_out))


class ConversationDataset:
    """LLaVA conversations; their images lie in a folder, or by uid in a curated data set."""

    def __init__(self, source: DataSource) -> None:
        self._conversations = load_conversations(source.path)
        # One shard: they are in memory, and conversations about one image often lie together in the file.
        self.shard_sizes: Sequence[int] = [len(self._conversations)]
        self.manifest_hash: str | None = storage.sha256_of(source.path)
        self._images: str | None = None
        self._curated: CuratedDataset | None = None
        if source.images is not None and _is_curated(source.images):
            self._curated = CuratedDataset(DataSource(path=source.images))
            self._rows = self._curated.rows_by_uid()
        elif any(conversation.image for conversation in self._conversations):
            self._images = source.images or source.path.rpartition("/")[0] or "."

    def read(self, shard: int, row: int) -> RawSample:
        """One conversation with the bytes of its image."""
        conversation = self._conversations[row]
        return RawSample(conversation.id, self._image(conversation), "", conversation)

    def texts(self) -> list[str]:
        """Everything that is said, with the words that templates put before it, for a tokenizer."""
        return [
            f"{turn.role.upper()}: {turn.text}" for conversation in self._conversations for turn in conversation.turns
        ]

    def _image(self, conversation: Conversation) -> bytes | None:
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
