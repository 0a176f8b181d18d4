"""Base classes of signals that are a function of one image or one caption; a subclass implements one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.signals.models.actors import open_tar
from pairloom.schemas.data_set.manifest import ShardEntry, table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import SampleError
from pairloom.schemas.images.decode import Pixels, decode_rgb
from pairloom.schemas.recipes.signals import Signal, SignalWork


class ImageSignal(Signal):
    """A signal of single stored images. One Ray task per shard."""

    arrow_schema: ClassVar[pa.Schema]  # `uid`, then the measured columns

    def measure_image(self, pixels: Pixels) -> Sequence[Any]:
        """The values of one decoded image (uint8 RGB [height, width, 3]), in the order of the columns.

        May raise SampleError; the row then has null values.
        """
        raise NotImplementedError

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Decode and measure every image; rows without a decodable image are null."""
        task = partial(_measure_images, self, work.raw_folder, work.folder)
        run_shards(f"signals {self.name}", task, work.shards, work.num_done)
        return {}


class CaptionSignal(Signal):
    """A signal of single captions. One Ray task per shard."""

    arrow_schema: ClassVar[pa.Schema]  # `uid`, then the measured columns

    def measure_caption(self, caption: str) -> Sequence[Any]:
        """The values of one caption, in the order of the columns."""
        raise NotImplementedError

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Measure every caption; rows without an image are null."""
        task = partial(measure_captions, self, work.raw_folder, work.folder)
        run_shards(f"signals {self.name}", task, work.shards, work.num_done)
        return {}


def _measure_images(signal: ImageSignal, raw_folder: str, folder: str, shard: ShardEntry) -> None:
    raw = read_table(table_url(raw_folder, shard.name), ["uid", "status", "offset", "num_bytes"])
    values: list[Sequence[Any] | None] = []
    with open_tar(raw_folder, shard, raw) as reader:
        for row in raw.to_pylist():
            measured = None
            if reader is not None and row["status"] == STATUS_SUCCESS:
                try:
                    measured = signal.measure_image(decode_rgb(reader.read(row["offset"], row["num_bytes"])))
                except SampleError:
                    measured = None  # score rules drop rows without values
            values.append(measured)
    _write(table_url(folder, shard.name), raw, values, signal.arrow_schema)


def measure_captions(signal: CaptionSignal, raw_folder: str, folder: str, shard: ShardEntry) -> None:
    """Write the table of one shard; rows without an image are null."""
    raw = read_table(table_url(raw_folder, shard.name), ["uid", "status", "caption"])
    values = [
        signal.measure_caption(caption or "") if status == STATUS_SUCCESS else None
        for caption, status in zip(raw["caption"].to_pylist(), raw["status"].to_pylist(), strict=True)
    ]
    _write(table_url(folder, shard.name), raw, values, signal.arrow_schema)


def _write(url: str, raw: pa.Table, values: Sequence[Sequence[Any] | None], schema: pa.Schema) -> None:
    columns = [
        pa.array([None if measured is None else measured[index] for measured in values], field.type)
        for index, field in enumerate(list(schema)[1:])
    ]
    write_table(url, pa.table([raw["uid"], *columns], schema=schema))
