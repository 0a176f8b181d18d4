"""caption_duplicates: number of samples in the whole data set with the same, or nearly the same, caption.

Captions are compared after NFKC, case folding and collapsing of spaces. Two captions are near if at least `threshold`
of the 128 slots of their MinHash signatures are equal; groups are connected components, chains included. Nothing is
dropped here: equal captions of different images are not duplicates. Score rules can use the counts.

The result does not depend on the order of shards or on the number of workers. The driver holds no samples;
caption_duplicates_rounds.py has the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pairloom.pipelines.engine.batches import Batch, Folders, cut_batches
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import Rows
from pairloom.pipelines.engine.step_folder import missing_tables
from pairloom.pipelines.signals import caption_duplicates_rounds as caption_rounds
from pairloom.pipelines.signals.caption_duplicates_rounds import (
    DEFAULT_LIMITS,
    CaptionLimits,
    Job,
    Tables,
    captions_of,
    hashes_of,
)
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import write_table
from pairloom.schemas.recipes.signals import Name, Signal, SignalWork
from pairloom.schemas.storage import storage

VERSION = 1
CAPTION_DUPLICATES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("caption_group", pa.string()),  # 16 hex digits: the smallest caption hash of the group
        pa.field("num_equal_captions", pa.int32()),  # samples with this caption, including this one
        pa.field("num_near_captions", pa.int32()),  # samples of the group, including this one
    ]
)
_MEASURED = list(CAPTION_DUPLICATES)[1:]


def measure_caption_duplicates(
    name: str, threshold: float, raw_folder: str, folder: str, limits: CaptionLimits = DEFAULT_LIMITS
) -> None:
    """Write the missing shards; counts are over all shards."""
    raw, step = load_manifest(raw_folder), f"signals {name}"
    tables_folder = storage.join(folder, "spill")
    if missing_tables(folder, [shard.name for shard in raw.shards]):
        batches = cut_batches([(Folders(raw_folder), raw)], limits.batches)
        num_parts = max(1, -(-raw.num_samples // limits.captions_per_part))
        job = Job(threshold, Tables(tables_folder, len(batches), num_parts))
        run_shards(f"{step}: sign", partial(caption_rounds.sign_batch, job), batches)
        for task in (caption_rounds.merge_part, caption_rounds.pair_part):
            run_shards(f"{step}: {task.__name__.partition('_')[0]}", partial(task, job), range(num_parts))
        run_shards(f"{step}: compare", partial(caption_rounds.first_part, job), range(num_parts))
        run_shards(f"{step}: compare", partial(caption_rounds.second_part, job), range(num_parts))
        run_shards(f"{step}: join", partial(caption_rounds.join_links, job), [0])
        run_shards(f"{step}: count", partial(caption_rounds.count_part, job), range(num_parts))
        run_shards(step, partial(write_batch, job, folder), batches)
    storage.remove(tables_folder)


class CaptionDuplicateSignals(Signal):
    """caption_group, num_equal_captions, num_near_captions: counted over the whole data set (MinHash of 4-grams)."""

    kind: Literal["caption_duplicates"]
    name: Name = "caption_duplicates"
    threshold: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """Smallest Jaccard similarity of near captions; below 0.7 too many pairs would be missed."""

    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("num_equal_captions", "num_near_captions")
    is_per_shard: ClassVar[bool] = False
    limits: ClassVar[CaptionLimits] = DEFAULT_LIMITS

    def settings(self) -> dict[str, Any]:
        """The threshold is part of the hash even if it has its default."""
        return {"kind": self.kind, "threshold": self.threshold}

    def measure(self, work: SignalWork) -> Mapping[str, object]:
        """Rounds of tasks over all shards."""
        measure_caption_duplicates(self.name, self.threshold, work.raw_folder, work.folder, self.limits)
        return {}


def write_batch(job: Job, folder: str, batch: Batch) -> None:
    """Write the missing shards of one batch."""
    counted = job.tables.counted.read(batch.index)
    counted = counted[np.argsort(counted["hash"])]
    for name in missing_tables(folder, [name for _, name in batch.shards]):
        write_shard(batch.folders.raw, folder, name, counted)


def write_shard(raw_folder: str, folder: str, name: str, counted: Rows) -> None:
    """Write the columns of one shard; rows without an image are null. `counted` is sorted by hash."""
    uids, has_image, captions = captions_of(raw_folder, name)
    mine = counted[np.searchsorted(counted["hash"], hashes_of(captions))]
    columns: list[Any] = [uids]
    for values, field in zip((_hex(mine["group"]), mine["num_equal"], mine["num_near"]), _MEASURED, strict=True):
        column = np.zeros(len(has_image), values.dtype)
        column[has_image] = values
        columns.append(pa.array(column, field.type, mask=~has_image))
    write_table(table_url(folder, name), pa.table(columns, schema=CAPTION_DUPLICATES))


def _hex(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    return np.array([f"{value:016x}" for value in hashes.tolist()], "U16")
