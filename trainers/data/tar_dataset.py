"""Samples in tars, by the tables that say where each one lies: curated data sets, indexed tars, and views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, table_url, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.data_set.tables import check_joined, fold_of, read_table
from pairloom.schemas.data_set.tombstones import recalled_uids
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.local_cache import cache_folder
from pairloom.schemas.recipes.train import DataSource
from pairloom.schemas.storage import storage
from pairloom.trainers.data.lru_cache import LruCache
from pairloom.trainers.data.raw_sample import RawSample
from pairloom.trainers.data.shard_cache import Part, PartsReader, ShardCache, plan_parts

OPEN_SHARDS = 32  # tables and tars that one process keeps open
IN_TARS = ["uid", "key", "caption", "image_sha256", "offset", "num_bytes"]
COLUMNS = [*IN_TARS, "duplicate_group"]


@dataclass(frozen=True)
class Rows:
    """The usable rows of a shard, as lists: Arrow takes longer to give one value than a tar to give its bytes."""

    uids: list[str]
    keys: list[str]
    captions: list[str]
    image_ids: list[str | None]
    offsets: list[int]
    num_bytes: list[int]


class CuratedDataset:
    """A curated data set; rows of the fold that is held out are left out."""

    def __init__(self, source: DataSource, folder: str, cache_bytes: int) -> None:
        self._folder, self._hold_out = folder, source.hold_out_fold
        self._manifest: Manifest = load_manifest(folder)
        self._tars = self._find_tars()
        self._recalled = recalled_uids(folder)  # their rows stay counted: the order of all others stays
        self._cache = ShardCache(cache_folder() / "tars", cache_bytes)
        self._rows: LruCache[Rows] = LruCache(OPEN_SHARDS)
        self._readers: LruCache[ShardReader | PartsReader] = LruCache(OPEN_SHARDS)
        self.manifest_hash: str | None = self._manifest.hash()
        if self._hold_out is None:
            self.shard_sizes: Sequence[int] = [shard.num_samples for shard in self._manifest.shards]
        else:
            self.shard_sizes = [len(self.rows(index).uids) for index in range(len(self._manifest.shards))]
        if not sum(self.shard_sizes):
            raise InputError(f"{source.path}: holds no sample to train on")

    def read(self, shard: int, row: int) -> RawSample:
        """One sample with the bytes of its image. Raises SampleError for one that was recalled."""
        rows = self.rows(shard)
        uid = rows.uids[row]
        if uid in self._recalled:
            raise SampleError(DropReason.RECALLED, f"uid {uid} was recalled after this data set was made")
        image = self._reader(shard).view(rows.offsets[row], rows.num_bytes[row])
        return RawSample(uid, image, rows.captions[row], None, rows.keys[row], rows.image_ids[row])

    def read_ahead(self, shard: int) -> None:
        """Begin to fetch a remote tar."""
        url, _ = self._tars[shard]
        if not storage.is_local(url) and shard not in self._readers:
            self._cache.begin(url, self._parts(shard))

    def captions(self, shard: int) -> list[str]:
        """All captions of a shard but those that were recalled."""
        rows = self.rows(shard)
        pairs = zip(rows.uids, rows.captions, strict=True)
        return [caption for uid, caption in pairs if uid not in self._recalled]

    def rows_by_uid(self) -> dict[str, tuple[int, int]]:
        """uid -> (shard, row) of every sample."""
        return {
            uid: (shard, row)
            for shard in range(len(self._manifest.shards))
            for row, uid in enumerate(self.rows(shard).uids)
        }

    def rows(self, shard: int) -> Rows:
        """Where the usable samples of a shard lie."""
        return self._rows.get_or_make(shard, lambda: self._make_rows(shard))

    def _make_rows(self, shard: int) -> Rows:
        table = self._leave_out(self._read_table(shard))
        return Rows(*(table[name].to_pylist() for name in IN_TARS))

    def _read_table(self, shard: int) -> pa.Table:
        return read_table(table_url(self._folder, self._manifest.shards[shard].name), COLUMNS)

    def _leave_out(self, table: pa.Table) -> pa.Table:
        if self._hold_out is None:
            return table
        held_out, num_folds = self._hold_out
        rows = table.select(["uid", "duplicate_group"]).to_pylist()
        folds = [fold_of(row["duplicate_group"] or row["uid"], num_folds) for row in rows]
        return table.filter(pa.array(np.array(folds, np.int64) != held_out))

    def _find_tars(self) -> list[tuple[str, int]]:
        """URL and size of the tar of each shard."""
        return [(tar_url(self._folder, shard), shard.num_bytes) for shard in self._manifest.shards]

    def _reader(self, shard: int) -> ShardReader | PartsReader:
        found = self._readers.get(shard)
        if found is not None:
            return found
        url, _ = self._tars[shard]
        if storage.is_local(url):
            return self._readers.get_or_make(shard, lambda: ShardReader(url))
        cached = self._cache.find(url, self._parts(shard))
        return (
            ShardReader(url) if cached is None else self._readers.get_or_make(shard, lambda: cached)
        )  # ranges until it is here

    def _parts(self, shard: int) -> list[Part]:
        rows = self.rows(shard)
        return plan_parts(np.array(rows.offsets), np.array(rows.num_bytes), self._tars[shard][1])


class ViewDataset(CuratedDataset):
    """A selection over raw shards that were never written again: its kept rows are read where they lie."""

    def _find_tars(self) -> list[tuple[str, int]]:
        self._raw_folder, raw = find_raw(self._folder, self._manifest)
        by_name = {shard.name: shard for shard in raw.shards}
        found: list[ShardEntry] = [by_name[shard.name] for shard in self._manifest.shards]
        return [(tar_url(self._raw_folder, shard), shard.num_bytes) for shard in found]

    def _read_table(self, shard: int) -> pa.Table:
        name = self._manifest.shards[shard].name
        selection = read_table(table_url(self._folder, name), ["uid", "kept", "duplicate_group"])
        raw = read_table(table_url(self._raw_folder, name), IN_TARS)
        check_joined(raw, selection, f"{self._folder}: {name}")
        joined = raw.append_column("duplicate_group", selection["duplicate_group"])
        return joined.filter(selection["kept"])


def find_raw(folder: str, selection: Manifest) -> tuple[str, Manifest]:
    """The raw folder that a selection was made of, below the same root. Raises InputError."""
    root = folder.rstrip("/").rsplit("/", 3)[0]
    for name in storage.list_files(storage.join(root, "raw")):
        for candidate in storage.list_files(name):
            if storage.exists(storage.join(candidate, "manifest.json")):
                raw = load_manifest(candidate)
                if raw.hash() in selection.parents:
                    return candidate, raw
    raise InputError(f"{folder}: the raw data set that it selects from is not below {storage.join(root, 'raw')}")
