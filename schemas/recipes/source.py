"""Sources: where the pairs come from. The base class of all kinds, built in or from other packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pairloom.registry import SOURCES, PartOf
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name

DEFAULT_CAPTION_COLUMN = "caption"


class SourceRecipe(StrictModel):
    """Recipe part of one source. A subclass gives `kind` a Literal type and implements `open`."""

    kind: str
    path: str | tuple[str, ...]
    """A file, a folder, a glob or any fsspec URL, or a list of them."""
    images: str | None = None
    """folder, parquet_images: where the image files lie."""
    name: Name = "main"
    url_column: str = "url"
    caption_column: str | Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_CAPTION_COLUMN
    """One column, or several: then each caption is a row."""
    image_column: str = "image"
    """parquet_images, folder: the column with the image or its file name."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the source that stay in the tables and in the JSON of each sample."""
    blur_boxes_column: str | None = None
    """[[x_min, y_min, x_max, y_max], ...], such as DataComp's face_bboxes."""
    blur_boxes_unit: Literal["fractions", "pixels"] = "fractions"
    """fractions of the sides, or pixels of the upright image."""

    not_hashed: ClassVar[Mapping[str, str]] = {"path": "segments freeze the files", "name": "names the folder"}

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns that hold captions."""
        return (self.caption_column,) if isinstance(self.caption_column, str) else tuple(self.caption_column)

    def open(self) -> Any:
        """The reader (`pipelines.sources.source.Source`); a part that has its methods may return itself."""
        return self

    @model_validator(mode="after")
    def _captions_are_told_apart(self) -> SourceRecipe:
        several = self.caption_columns
        if len(set(several)) < len(several):
            raise ValueError("caption_column: a column is there twice")
        if len(several) > 1 and "caption_column" in self.keep_columns:
            raise ValueError(
                "keep_columns: with several caption columns, caption_column says which one a row came from"
            )
        return self

    def _refuse_images(self) -> None:
        if self.images is not None:
            raise ValueError(f"images: kind {self.kind} has no image files; leave it out")


SourcePart = Annotated[SourceRecipe, PartOf(SOURCES)]
