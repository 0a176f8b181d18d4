"""Segments: frozen lists of source files from which raw shards are made.

The first run freezes the files it finds (path, size, etag, rows) as segment 0. Files added later become a new segment,
so that existing shards do not change. A frozen file that changed or disappeared is an error, unless none of its rows
was ingested, for example because it was damaged. Then it is released from its segment, and the new content comes into a
new segment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from pairloom.pipelines.sources.source import Piece, SourceFile
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class Segment:
    """Files that were frozen together, and their raw shards."""

    index: int
    first_shard: int
    num_shards: int
    files: tuple[SourceFile, ...]
    kept_types: Mapping[str, str]  # of keep_columns

    @property
    def num_rows(self) -> int:
        """Rows of all files; 0 for tars, which are not counted."""
        return sum(file.num_rows or 0 for file in self.files)


def load_segments(folder: str) -> list[Segment]:
    """Segments of a raw folder, in order."""
    segments = []
    for url in storage.list_files(storage.join(folder, "segments")):
        if url.endswith(".json") and not storage.name_of(url).startswith("."):
            fields = json.loads(storage.read_text(url))
            files = tuple(SourceFile(**file) for file in fields.pop("files"))
            segments.append(Segment(files=files, **fields))
    return sorted(segments, key=lambda segment: segment.index)


def save_segment(folder: str, segment: Segment) -> None:
    """Freeze a segment. Raises InputError if another run froze it meanwhile."""
    url = _segment_url(folder, segment)
    if not storage.put_if_absent(url, _segment_bytes(segment)):
        raise InputError(f"{url}: another run has just frozen this segment; run the same command again")


def _segment_url(folder: str, segment: Segment) -> str:
    return storage.join(folder, "segments", f"{segment.index:04d}.json")


def _segment_bytes(segment: Segment) -> bytes:
    fields = {**asdict(segment), "kept_types": dict(segment.kept_types)}
    for file in fields["files"]:
        if not file["is_released"]:
            del file["is_released"]
    return json.dumps(fields, sort_keys=True, indent=1).encode()


def release_files(
    folder: str,
    segments: Sequence[Segment],
    listed: Sequence[SourceFile],
    can_release: Callable[[Segment, SourceFile], bool],
) -> list[Segment]:
    """Release the frozen files that were replaced or removed and that `can_release` permits. Returns the segments."""
    there = {(file.path, file.size, file.etag) for file in listed}
    released = []
    for segment in segments:
        files = tuple(
            replace(file, is_released=True)
            if not file.is_released and (file.path, file.size, file.etag) not in there and can_release(segment, file)
            else file
            for file in segment.files
        )
        released.append(replace(segment, files=files))
        if files != segment.files:
            storage.put_bytes(_segment_url(folder, segment), _segment_bytes(released[-1]))
    return released


def find_new_files(segments: Sequence[Segment], listed: Sequence[SourceFile]) -> list[SourceFile]:
    """Files that are in no segment. Raises InputError for a frozen file that changed or is gone."""
    there = {file.path: file for file in listed}
    frozen: set[str] = set()
    for segment in segments:
        for file in (one for one in segment.files if not one.is_released):
            frozen.add(file.path)
            now = there.get(file.path)
            if now is None:
                raise InputError(
                    f"{file.path}: was ingested and is no longer part of source.path; restore it, "
                    "or choose another source.name for the new list"
                )
            if (now.size, now.etag) != (file.size, file.etag):
                raise InputError(
                    f"{file.path}: has changed since it was ingested ({file.size} bytes then, {now.size} now); "
                    "restore the old content, add new rows as a new file, or choose another source.name"
                )
    return [file for file in listed if file.path not in frozen]


def cut_pieces(
    files: Sequence[SourceFile], readable: Sequence[str], rows_per_shard: int
) -> Iterator[tuple[Piece, ...]]:
    """The pieces of each shard: `rows_per_shard` consecutive rows over all files; the last shard has the rest.

    Pieces of released files are left out, so that a shard may have none.
    """
    ends = np.cumsum([file.num_rows or 0 for file in files])
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, rows_per_shard):
        last = min(first + rows_per_shard, total)
        pieces = []
        index = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            start = int(ends[index]) - (files[index].num_rows or 0)
            length = min(last, int(ends[index])) - first
            if length > 0 and not files[index].is_released:
                pieces.append(Piece(readable[index], files[index].path, first - start, length))
            first += max(length, 0)
            index += 1
        yield tuple(pieces)
