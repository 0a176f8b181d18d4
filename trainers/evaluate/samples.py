"""Read evaluation samples from common formats: jsonl tables, WebDataset tars, parquet files with images."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS, ShardReader
from pairloom.schemas.data_set.tar_members import index_tar
from pairloom.schemas.data_set.tar_samples import TarSample, group_samples, image_of
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import listing, storage
from pairloom.trainers.data.tar_index import find_tars
from pairloom.trainers.evaluate.load import ImageSource
from pairloom.trainers.evaluate.records import file_beside, read_jsonl

IMAGE_COLUMNS = ("image", "img", *IMAGE_EXTENSIONS)
_LABELS_OF_HF = b"huggingface"  # metadata of parquet files that Hugging Face's `datasets` writes


@dataclass(frozen=True)
class Sample:
    """One image and its other fields: table columns, keys of a tar's json, other tar members by extension."""

    image: ImageSource
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class ParquetImage(ImageSource):
    """An image in a parquet column that holds bytes or a struct {bytes, path}."""

    column: str = ""
    row_group: int = 0
    row: int = 0

    def read(self) -> bytes:
        """Read the encoded image. Raises InputError when the row has neither bytes nor path."""
        with _one_at_a_time:
            value = _column(self.url, self.row_group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            return data
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return ImageSource(file_beside(self.url, value["path"])).read()
        raise InputError(f"{self.url}: row {self.row} of row group {self.row_group} has no image")


_one_at_a_time = threading.Lock()  # otherwise every decoding thread would read the same row group


@lru_cache(maxsize=2)
def _column(url: str, row_group: int, column: str) -> pa.ChunkedArray:
    with storage.open_read(url) as file:
        return pq.ParquetFile(file).read_row_group(row_group, [column])[column]


def read_samples(data: str) -> list[Sample]:
    """Read the samples of a jsonl with `image`, of tars (file, folder, glob or braces), or of parquet files.

    Returns an empty list when `data` is none of these. Raises InputError when a file is malformed.
    """
    if data.endswith(".jsonl"):
        return _of_test_split(data, read_jsonl(data, ("image",)))
    if tars := find_tars(data):
        return [sample for tar in tars for sample in _from_tar(tar)]
    return [sample for file in find_parquet(data) for sample in _from_parquet(file)]


def find_parquet(data: str) -> list[str]:
    """Parquet files of a path: a file, folder or glob."""
    return [file for file in listing.expand(data) if file.endswith(".parquet")]


def _of_test_split(path: str, records: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Samples of a table; if records have a `split`, only those of split test."""
    if any("split" in record for record in records):
        records = [record for record in records if record.get("split") == "test"]
    if not records:
        raise InputError(f"{path}: has splits, but no image of split test")
    return [Sample(ImageSource(file_beside(path, str(record["image"]))), record) for record in records]


def _from_tar(url: str) -> Iterator[Sample]:
    with storage.local_copy(url) as path:
        reader = ShardReader(path)
        samples = group_samples(index_tar(path))
        found = [(image_of(sample), _texts(reader, sample)) for sample in samples.values()]
        reader.close()
    for image, fields in found:
        if image is not None:
            yield Sample(ImageSource(url, image.byte_range.offset, image.byte_range.num_bytes), fields)


def _texts(reader: ShardReader, sample: TarSample) -> dict[str, Any]:
    """Fields of a sample apart from its image: keys of the json member, other members as text by extension."""
    fields: dict[str, Any] = {}
    for extension, member in sample.items():
        if extension in IMAGE_EXTENSIONS:
            continue
        data = reader.read(member.byte_range.offset, member.byte_range.num_bytes)
        if extension != "json":
            fields[extension] = data.decode("utf-8", "replace").strip()
            continue
        try:
            loaded = json.loads(data)
        except ValueError:
            loaded = None
        fields |= loaded if isinstance(loaded, dict) else {}
    return fields


def _from_parquet(url: str) -> Iterator[Sample]:
    with storage.open_read(url) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise InputError(f"{url}: not a parquet file: {error}") from error
        names = parquet.schema_arrow.names
        column = next((name for name in IMAGE_COLUMNS if name in names), None)
        if column is None:
            raise InputError(f"{url}: no column of images; one of {', '.join(IMAGE_COLUMNS)}")
        others = [name for name in names if name != column]
        for row_group in range(parquet.num_row_groups):
            for row, fields in enumerate(parquet.read_row_group(row_group, others).to_pylist()):
                yield Sample(ParquetImage(url, column=column, row_group=row_group, row=row), fields)


def parquet_class_names(data: str) -> dict[str, str]:
    """Class names by label from the metadata of Hugging Face `datasets`; empty if the first file has none."""
    files = find_parquet(data)
    if not files:
        return {}
    with storage.open_read(files[0]) as file:
        metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
    features = json.loads(metadata.get(_LABELS_OF_HF, b"{}")).get("info", {}).get("features", {})
    labels = [feature for feature in features.values() if isinstance(feature, dict) and feature.get("names")]
    return {str(index): name for index, name in enumerate(labels[0]["names"])} if labels else {}
