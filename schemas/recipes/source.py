"""Sources: where the pairs come from. The base class of all kinds, of this package and of plug-ins."""

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
    """Kind of the source."""
    path: str | tuple[str, ...]
    """A file, a folder, a glob, braces (`{000..012}.tar`) or any fsspec URL, or a list of them."""
    images: str | None = None
    """folder, parquet_images: the folder of the image files; null: the folder of the table."""
    name: Name = "main"
    """Name of the raw data set: `<root>/raw/<name>`."""
    url_column: str = "url"
    """Column with the URL of the image."""
    caption_column: str | Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_CAPTION_COLUMN
    """Column with the caption, or a list of columns; then each caption becomes a row."""
    image_column: str = "image"
    """parquet_images, folder: column with the image, or with its file name."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the source to keep in the tables and in the JSON of each sample."""
    blur_boxes_column: str | None = None
    """Column with boxes to blur, [[x_min, y_min, x_max, y_max], ...], such as DataComp's face_bboxes; null: none."""
    blur_boxes_unit: Literal["fractions", "pixels"] = "fractions"
    """Unit of the boxes: fractions of the sides, or pixels of the upright image as received."""

    not_hashed: ClassVar[Mapping[str, str]] = {"path": "segments freeze the files", "name": "names the folder"}

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns with captions."""
        return (self.caption_column,) if isinstance(self.caption_column, str) else tuple(self.caption_column)

    def open(self) -> Any:
        """The reader (`pipelines.sources.source.Source`); a class with the methods of a Source may return itself."""
        return self

    @model_validator(mode="after")
    def _check_caption_columns(self) -> SourceRecipe:
        columns = self.caption_columns
        if len(set(columns)) < len(columns):
            raise ValueError("caption_column: a column is listed twice; remove one")
        if len(columns) > 1 and "caption_column" in self.keep_columns:
            raise ValueError(
                "keep_columns: with several caption columns, caption_column is added automatically; remove it"
            )
        return self

    def _refuse_images(self) -> None:
        if self.images is not None:
            raise ValueError(f"images: kind {self.kind} has no image files; remove the field")


SourcePart = Annotated[SourceRecipe, PartOf(SOURCES)]
