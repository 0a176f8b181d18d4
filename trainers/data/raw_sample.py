"""A sample before its image is decoded, and what gives samples by (shard, row)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pairloom.schemas.conversation import Conversation


class RawSample(NamedTuple):  # a tuple is made three times as fast as a frozen dataclass
    """One sample before its image is decoded; `image` is None for a conversation without one."""

    uid: str
    image: bytes | memoryview | None
    caption: str
    conversation: Conversation | None = None
    key: str = ""  # its name in the tar
    image_id: str | None = None  # samples of equal bytes share it; null: not known


class Dataset(Protocol):
    """Samples by (shard, row)."""

    shard_sizes: Sequence[int]  # usable rows
    manifest_hash: str | None

    def read(self, shard: int, row: int) -> RawSample:
        """One sample. Raises SampleError (this sample) or StorageError."""
        ...

    def read_ahead(self, shard: int) -> None:
        """Be told that a shard is read soon."""
        ...
