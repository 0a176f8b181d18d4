"""A data set on disk or on S3, opened from Python: rows, samples, loaders and the history of each sample.

Public names: `DataSet`, `Sample`, `Difference` and `open_data_set`, which is `pairloom.open`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pairloom.ledger import Ledger, find_ledger, samples_query, table_query, tables_of
from pairloom.schemas.data_set.manifest import Manifest, entry_of_table, is_complete, load_manifest, resolve, table_url
from pairloom.schemas.data_set.manifest import tar_url as tar_of
from pairloom.schemas.data_set.result_path import STEP_FOLDERS, root_of
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.columns import EXTENSIONS
from pairloom.schemas.storage import storage

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import webdataset as wds

    from pairloom.torch_batches import TorchBatches


@dataclass(frozen=True)
class Sample:
    """One image with its caption, and its row of the view `samples`."""

    uid: str
    key: str  # name in its tar
    url: str | None
    caption: str
    image: bytes  # as stored
    extension: str  # of the image: jpg, png, webp, ...
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """How two selections of the same raw rows differ."""

    num_both: int  # samples that both keep
    only_first: pa.Table  # uid and drop_reason (of the second) of the samples that only the first keeps
    only_second: pa.Table  # uid and drop_reason (of the first) of the samples that only the second keeps


class DataSet:
    """A raw, selected or curated data set. Make one with `pairloom.open`.

    Rows come from the tables of all steps, joined as the view `samples` (`columns` names its columns): one row per
    input row, dropped ones included, or of a curated data set one row per sample. Nothing is read before it is asked
    for. Images are read from their tars by byte range.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def path(self) -> str:
        """The folder of this data set."""
        return self._ledger.folder

    @property
    def step(self) -> str:
        """raw, selections or curated."""
        return self.manifest.step

    @cached_property
    def manifest(self) -> Manifest:
        """Totals, drop counts and parents."""
        return load_manifest(self.path)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `samples`."""
        return list(self.connection().sql("SELECT * FROM samples LIMIT 0").columns)

    def __len__(self) -> int:
        """Samples that this data set keeps."""
        return self.manifest.num_samples

    def __repr__(self) -> str:
        return f"DataSet({self.path!r}, {len(self)} samples of {self.manifest.num_rows} rows)"

    # ---- rows

    def connection(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the view `samples` and one view per step: `raw`, `signals_<name>`, `dedupe`, ..."""
        import duckdb

        connection = duckdb.connect()
        if not storage.is_local(self.path):
            connection.register_filesystem(storage.filesystem(self.path))
        for name, folder in tables_of(self._ledger):
            connection.execute(f'CREATE VIEW "{name}" AS {table_query(folder)}')
        connection.execute(f"CREATE VIEW samples AS {samples_query(self._ledger)}")
        return connection

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """The result of a query over `samples` and the views of the steps, lazily: `.df()`, `.arrow()`, `.show()`.

        Raises InputError for a query that DuckDB refuses.
        """
        import duckdb

        try:
            return self.connection().sql(query)
        except duckdb.Error as error:
            raise InputError(f"{self.path}: {' '.join(str(error).split())[:300]}") from error

    def to_arrow(self, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Rows as an Arrow table, in order. `where` is an SQL condition, such as "kept AND width >= 256"."""
        names = "*" if columns is None else ", ".join(f'"{name}"' for name in columns)
        condition = "" if where is None else f" WHERE {where}"
        return self.sql(f"SELECT {names} FROM samples{condition}").to_arrow_table()

    def to_pandas(self, columns: Sequence[str] | None = None, where: str | None = None) -> pd.DataFrame:
        """Rows as a pandas data frame, in order. `where` is an SQL condition."""
        frame: pd.DataFrame = self.to_arrow(columns, where).to_pandas()
        return frame

    def to_polars(self, columns: Sequence[str] | None = None, where: str | None = None) -> Any:
        """Rows as a Polars data frame. Raises InputError where Polars is not installed."""
        try:
            import polars
        except ImportError as error:
            raise InputError("to_polars: Polars is not installed; pip install polars, or use to_arrow") from error
        return polars.from_arrow(self.to_arrow(columns, where))

    # ---- samples

    def samples(self, where: str | None = None, columns: Sequence[str] | None = None) -> Iterator[Sample]:
        """The kept samples with their images, in order. `where` narrows them; `columns` limits `Sample.row`."""
        needed = ("uid", "key", "url", "caption", "mime_type", "offset", "num_bytes", "shard")
        names = None if columns is None else list(dict.fromkeys([*needed, *columns]))
        condition = "kept AND key IS NOT NULL" + (f" AND ({where})" if where else "")
        rows = self.to_arrow(names, condition)
        reader: ShardReader | None = None
        shard = ""
        try:
            for batch in rows.to_batches(max_chunksize=1000):
                for row in batch.to_pylist():
                    if reader is None or row["shard"] != shard:
                        if reader is not None:
                            reader.close()
                        shard, reader = row["shard"], ShardReader(self._tar_of(row["shard"]))
                    yield _sample(row, reader.read(row["offset"], row["num_bytes"]))
        finally:
            if reader is not None:
                reader.close()

    def _tar_of(self, shard_name: str) -> str:
        folder = self._ledger.curated or self._ledger.raw
        entry = next(shard for shard in load_manifest(folder).shards if shard.name == shard_name)
        table = read_table(table_url(folder, shard_name), ["uid"])
        return tar_of(folder, entry_of_table(table, entry))

    def webdataset(self, where: str | None = None) -> wds.DataPipeline:
        """A webdataset pipeline over the kept samples: dicts of bytes with `__key__`, the image, `txt` and `json`.

        Add `.decode("pil")`, `.to_tuple("jpg", "txt")`, `.batched(n)` and other stages as usual.
        """
        import webdataset

        class Pipeline(webdataset.DataPipeline, webdataset.compat.FluidInterface):  # type: ignore[misc]
            """Stages can be added by method calls."""

        from pairloom.schemas.data_set.json_values import json_bytes

        def entries() -> Iterator[dict[str, Any]]:
            for sample in self.samples(where):
                fields = {name: value for name, value in sample.row.items() if not isinstance(value, bytes)}
                yield {
                    "__key__": sample.key,
                    "__url__": self.path,
                    sample.extension: sample.image,
                    "txt": sample.caption.encode(),
                    "json": json_bytes(fields),
                }

        return Pipeline(entries)

    def torch(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        image_size: int = 224,
        seed: int = 0,
        samples_seen: int = 0,
    ) -> TorchBatches:
        """Batches in the exact order of training, without end: an iterable torch data set.

        `batch_size` samples per rank and step; the samples of all ranks of a step depend on `seed` and on
        `batch_size * world_size` alone, where the number of ranks divides 8. `samples_seen` (a multiple of
        `batch_size * world_size`) resumes the order.
        """
        from pairloom.torch_batches import Position, TorchBatches

        if self.step == "raw":
            raise InputError(f"{self.path}: torch takes a selection or a curated data set; select samples first")
        return TorchBatches(self.path, batch_size, Position(rank, world_size, samples_seen), image_size, seed)

    # ---- history

    def explain(self, uid: str) -> dict[str, Any]:
        """Every step's decision about one sample, and the values that decided. Raises InputError for an unknown uid."""
        from pairloom.pipelines.inspect.inspect import explain

        root = root_of(self.path)
        if root is None:
            raise InputError(f"{self.path}: lies below no root, so the other steps cannot be found")
        return explain(root, uid)

    def diff(self, other: DataSet) -> Difference:
        """Which samples only one of two data sets of the same raw rows keeps. Raises InputError for other raw rows."""
        if load_manifest(self._ledger.raw).hash() != load_manifest(other._ledger.raw).hash():
            raise InputError(f"{self.path} and {other.path} are not made from the same raw rows")
        first, second = (_kept_uids(data_set) for data_set in (self, other))
        import duckdb

        connection = duckdb.connect()
        connection.register("first", first)
        connection.register("second", second)
        joined = "first JOIN second USING (uid) WHERE"
        [num_both] = connection.sql(f"SELECT count(*) FROM {joined} first.kept AND second.kept").fetchall()[0]
        only_first = connection.sql(f"SELECT uid, second.drop_reason FROM {joined} first.kept AND NOT second.kept")
        only_second = connection.sql(f"SELECT uid, first.drop_reason FROM {joined} second.kept AND NOT first.kept")
        return Difference(num_both, only_first.to_arrow_table(), only_second.to_arrow_table())


def _kept_uids(data_set: DataSet) -> pa.Table:
    """uid, kept, drop_reason of every row with an image."""
    ledger = data_set._ledger
    rows = DataSet(Ledger(ledger.raw, dedupe=ledger.dedupe, selection=ledger.selection))
    return rows.to_arrow(["uid", "kept", "drop_reason"], "ingest_drop_reason IS NULL")


def _sample(row: dict[str, Any], image: bytes) -> Sample:
    return Sample(
        row["uid"], row["key"], row["url"], row["caption"] or "", image, EXTENSIONS.get(row["mime_type"], "bin"), row
    )


def open_data_set(path: str, name: str | None = None) -> DataSet:
    """Open a data set: a folder of `raw`, `selections` or `curated`, or a root.

    Of a root, `name` chooses one below it, such as "curated/train"; without a name the newest result of the last step
    is opened, where it is clear which. Raises InputError where there is no such data set.
    """
    if name is not None:
        return DataSet(find_ledger(resolve(storage.join(path, name))))
    if not is_complete(path) and any(storage.exists(storage.join(path, step)) for step in STEP_FOLDERS):
        return DataSet(find_ledger(resolve(_last_result(path))))
    return DataSet(find_ledger(resolve(path)))


def _last_result(root: str) -> str:
    for step in ("curated", "selections", "raw"):
        found = [storage.join(root, step, storage.name_of(url)) for url in storage.list_files(storage.join(root, step))]
        found = [url for url in found if storage.exists(storage.join(url, "LATEST"))]
        if len(found) > 1:
            raise InputError(f"{root}: several data sets; name one: {', '.join(found)}")
        if found:
            return found[0]
    raise InputError(f"{root}: no complete data set here; run `pairloom curate` first")
