"""Existing WebDataset tars, adopted in place: their images are checked and measured, never copied.

The members of a sample share a key: `<key>.<image extension>`, `<key>.txt`, `<key>.json`, in any order and case,
anywhere in the tar. The caption is the JSON field that the recipe names, else the .txt, else another JSON field; url,
uid and keep_columns come from the JSON. If a key has several images, the first by name belongs to the sample; each
other image becomes a dropped row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import model_validator

from pairloom.pipelines.sources.source import (
    Piece,
    Prepared,
    SourceFile,
    SourceRow,
    caption_beside,
    clean_text,
    list_source_files,
    own_uid,
    parse_fields,
    text_schema,
    url_text,
)
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tar_members import Member, index_tar
from pairloom.schemas.data_set.tar_samples import TarSample, group_samples, images_of
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.source import SourceRecipe
from pairloom.schemas.storage import storage


class WebdatasetTars:
    """One raw shard per tar."""

    has_images = True
    is_adopted = True

    def __init__(self, recipe: SourceRecipe) -> None:
        self._recipe = recipe

    def list_files(self) -> list[SourceFile]:
        """Tars of the source path."""
        return list_source_files(self._recipe.path, lambda path: path.lower().endswith(".tar"), "tar")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Never called: counting the samples of a tar would read all of it."""
        raise AssertionError("tars are not prepared")

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """The tar itself."""
        return file.path

    def kept_schema(self, path: str) -> pa.Schema:
        """Fields of the JSON, as text."""
        return text_schema(self._recipe.keep_columns)

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """Samples in the order of their first members; a remote tar is copied once."""
        with storage.local_copy(piece.path) as path:
            samples = group_samples(index_tar(path))
            reader = ShardReader(path) if samples else None
            try:
                for key, sample in samples.items():
                    assert reader is not None
                    yield self._row(key, sample, reader)
                    for member in images_of(sample)[1:]:
                        yield _second_image(member, reader)
            finally:
                if reader is not None:
                    reader.close()

    def _row(self, key: str, sample: TarSample, reader: ShardReader) -> SourceRow:
        def read(member: Member | None) -> bytes | None:
            return reader.read(member.byte_range.offset, member.byte_range.num_bytes) if member is not None else None

        fields = parse_fields(read(sample.get("json")))
        image = next(iter(images_of(sample)), None)
        return SourceRow(
            url=url_text(fields.get(self._recipe.url_column)),
            caption=caption_beside(read(sample.get("txt")), fields, self._recipe),
            uid=own_uid(fields.get("uid")),
            image=read(image),
            kept={name: _as_text(fields.get(name)) for name in self._recipe.keep_columns},
            key=key,
            byte_range=image.byte_range if image is not None else None,
            original_size=_original_size(fields),
        )


def _second_image(member: Member, reader: ShardReader) -> SourceRow:
    """A row for an image that is not the first of its key; without caption, so that it never becomes a sample."""
    message = f"{member.key}.{member.extension}: another image of this key is the sample's"
    data = reader.read(member.byte_range.offset, member.byte_range.num_bytes)
    return SourceRow(None, None, image=data, error=SampleError(DropReason.SECOND_IMAGE, message))


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return clean_text(value)
    return json.dumps(value, sort_keys=True)


def _original_size(fields: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height in px before the writer of the tar resized the image, if its JSON has them."""
    width, height = fields.get("original_width"), fields.get("original_height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 2**31 and 0 < height < 2**31:
        return width, height
    return None


class WebdatasetSource(SourceRecipe):
    """Tars of any tool, such as img2dataset and DataComp; used in place, never copied."""

    kind: Literal["webdataset"]

    def open(self) -> WebdatasetTars:
        """The reader."""
        return WebdatasetTars(self)

    @model_validator(mode="after")
    def _fits_tars(self) -> WebdatasetSource:
        self._refuse_images()
        if self.blur_boxes_column is not None:
            raise ValueError("blur_boxes_column: images of adopted tars cannot be blurred; remove the field")
        if len(self.caption_columns) > 1:
            raise ValueError("caption_column: a sample of a tar has one caption; name one field of its JSON")
        return self
