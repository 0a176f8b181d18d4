"""The source that a recipe names."""

from __future__ import annotations

from pipelines.sources.folder import Folder
from pipelines.sources.parquet_images import ParquetImages
from pipelines.sources.source import Source
from pipelines.sources.url_table import UrlTable
from pipelines.sources.webdataset_tars import WebdatasetTars
from schemas.curate_recipe import SourceRecipe


def open_source(recipe: SourceRecipe) -> Source:
    """The reader of one kind of source."""
    kinds: dict[str, type[UrlTable | WebdatasetTars | ParquetImages | Folder]] = {
        "url_table": UrlTable,
        "webdataset": WebdatasetTars,
        "parquet_images": ParquetImages,
        "folder": Folder,
    }
    return kinds[recipe.kind](recipe)
