"""The source that a recipe names."""

from __future__ import annotations

from pairloom.pipelines.sources.folder import Folder
from pairloom.pipelines.sources.parquet_images import ParquetImages
from pairloom.pipelines.sources.source import Source
from pairloom.pipelines.sources.url_table import UrlTable
from pairloom.pipelines.sources.webdataset_tars import WebdatasetTars
from pairloom.schemas.recipes.curate import SourceRecipe


def open_source(recipe: SourceRecipe) -> Source:
    """The reader of one kind of source."""
    kinds: dict[str, type[UrlTable | WebdatasetTars | ParquetImages | Folder]] = {
        "url_table": UrlTable,
        "webdataset": WebdatasetTars,
        "parquet_images": ParquetImages,
        "folder": Folder,
    }
    return kinds[recipe.kind](recipe)
