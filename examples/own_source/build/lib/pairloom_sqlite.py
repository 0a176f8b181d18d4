"""sqlite: rows of a table `pairs` with the columns `image` (bytes), `caption` and `url` in SQLite databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import ClassVar, Literal

import pyarrow as pa

from pairloom.plugins import Piece, Prepared, SourceFile, SourceRecipe, SourceRow, list_source_files


class SqliteSource(SourceRecipe):
    """Images and captions in SQLite databases (*.db): local files or a folder of them."""

    kind: Literal["sqlite"]
    table: str = "pairs"

    has_images: ClassVar[bool] = True  # rows carry image bytes; no URL is fetched
    is_adopted: ClassVar[bool] = False  # images are stored again in raw tars

    def list_files(self) -> list[SourceFile]:
        """The databases that `path` names now; a segment freezes them with size and time."""
        return list_source_files(self.path, lambda path: path.endswith(".db"), "SQLite database (.db)")

    def prepare(self, file: SourceFile, staging_folder: str) -> Prepared:
        """Count the rows of one database, once."""
        with closing(sqlite3.connect(file.path)) as database:
            [[num_rows]] = database.execute(f'SELECT count(*) FROM "{self.table}"')
        return Prepared(num_rows)

    def readable(self, file: SourceFile, staging_folder: str) -> str:
        """Rows are read from the database itself."""
        return file.path

    def kept_schema(self, path: str) -> pa.Schema:
        """No further columns travel along."""
        return pa.schema([])

    def read_rows(self, piece: Piece) -> Iterator[SourceRow]:
        """The rows of a piece, in the order of their row numbers: the same at every call."""
        limit = -1 if piece.num_rows is None else piece.num_rows
        query = f'SELECT image, caption, url FROM "{self.table}" ORDER BY rowid LIMIT ? OFFSET ?'
        with closing(sqlite3.connect(piece.path)) as database:
            for image, caption, url in database.execute(query, (limit, piece.first_row)):
                yield SourceRow(url=url, caption=caption, image=image)
