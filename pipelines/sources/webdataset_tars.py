"""Existing WebDataset tars, adopted where they are: their images are checked and measured, never copied.

A sample is what shares a key: `<key>.<image extension>`, `<key>.txt`, `<key>.json`, in any order and case, anywhere
in its tar. Captions come from the .txt, else from the JSON; url, uid and keep_columns from the JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    caption_of,
    clean_text,
    list_source_files,
    own_uid,
    parse_fields,
    text_schema,
)
from schemas import storage
from schemas.curate_recipe import SourceRecipe
from schemas.errors import InputError
from schemas.shard import IMAGE_EXTENSIONS, Member, ShardReader, index_tar

Sample = dict[str, Member]  # extension -> member


class WebdatasetTars:
    """One raw shard for each tar."""

    has_images = True
    is_adopted = True

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe

    def list_files(self) -> list[SourceFile]:
        """Tars that the source path names."""
        return list_source_files(self._recipe.path, lambda path: path.lower().endswith(".tar"), "tar")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Tars are not prepared: counting their samples would read them whole."""
        raise AssertionError("tars are not prepared")

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The tar itself."""
        return file.path

    def kept_schema(self, path: str) -> pa.Schema:
        """Fields of the JSON travel as text."""
        return text_schema(self._recipe.keep_columns)

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Samples in the order in which their first member comes; a remote tar is read once, in one piece."""
        with _local_copy(piece.path) as path:
            samples = group_samples(index_tar(path))
            reader = ShardReader(path) if samples else None
            try:
                for key, sample in samples.items():
                    assert reader is not None
                    yield self._row(key, sample, reader)
            finally:
                if reader is not None:
                    reader.close()

    def _row(self, key: str, sample: Sample, reader: ShardReader) -> SourceRow:
        def read(member: Member | None) -> bytes | None:
            return reader.read(member.place.offset, member.place.num_bytes) if member is not None else None

        fields = parse_fields(read(sample.get("json")))
        image = next((sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample), None)
        caption = read(sample.get("txt"))
        return SourceRow(
            url=clean_text(fields.get(self._recipe.url_column)),
            caption=clean_text(caption) or caption_of(fields, self._recipe.caption_column),
            uid=own_uid(fields.get("uid")),
            image=read(image),
            kept={name: _as_text(fields.get(name)) for name in self._recipe.keep_columns},
            key=key,
            place=image.place if image is not None else None,
            original_size=_original_size(fields),
        )


def group_samples(members: list[Member]) -> dict[str, Sample]:
    """Members by key. A key that comes again with the same extension is another sample, `<key>+1`.

    WebDataset's keys end at the first dot. Tars whose keys hold dots (`v1.0.jpg`, `v1.0.txt`) are taken as their
    writer meant them: a longer key stands for itself where it has a caption of its own or no shorter one exists.
    """
    by_long_key: dict[str, list[Member]] = {}
    for member in members:
        middle, _, _ = member.extension.rpartition(".")
        by_long_key.setdefault(f"{member.key}.{middle}" if middle else member.key, []).append(member)
    samples: dict[str, Sample] = {}
    for long_key, group in by_long_key.items():
        short_key = group[0].key
        has_caption = any(_suffix(member) in ("txt", "json") for member in group)
        if long_key != short_key and short_key in by_long_key and not has_caption:
            continue  # one more part of the sample (`x.depth.png` beside `x.jpg`)
        for member in group:
            _put(samples, long_key, member)
    return {key: sample for key, sample in samples.items() if _is_sample(sample)}


def _suffix(member: Member) -> str:
    return member.extension.rpartition(".")[2]


def _put(samples: dict[str, Sample], key: str, member: Member) -> None:
    suffix, again, name = _suffix(member), 0, key
    while suffix in samples.setdefault(name, {}):
        again += 1
        name = f"{key}+{again}"
    samples[name][suffix] = member


def _is_sample(sample: Sample) -> bool:
    """Not some other file that lies in the tar, such as a README."""
    return any(extension in sample for extension in (*IMAGE_EXTENSIONS, "txt", "json"))


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return clean_text(value)
    return json.dumps(value, sort_keys=True)


def _original_size(fields: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height before the tar's writer resized the image, where it says so."""
    width, height = fields.get("original_width"), fields.get("original_height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 2**31 and 0 < height < 2**31:
        return width, height
    return None


@contextmanager
def _local_copy(url: str) -> Iterator[str]:
    """The tar on a local disk, for as long as it is read."""
    if storage.is_local(url):
        yield storage.local_path(url)
        return
    with tempfile.TemporaryDirectory(prefix="pairloom-") as folder:
        path = os.path.join(folder, "shard.tar")
        try:
            storage.filesystem(url).get_file(url, path)
        except FileNotFoundError as error:
            raise InputError(f"{url}: no such tar") from error
        yield path
