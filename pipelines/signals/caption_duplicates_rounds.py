"""The rounds of tasks that find near captions: they read batches of shards and compare parts of the captions.

    sign     batch of shards -> unique captions with signatures, by part of the caption hash
    merge    part of the captions -> counts over all batches; band words, by part of the word
    pair     part of the band words -> pairs of captions that share a word, by part of the first caption
    compare  part of the first captions -> pairs with the first signature, by part of the second; then links
    join     all links -> group and number of samples of each linked caption
    count    part of the captions -> values to write, by batch

Spill files connect the rounds. A task holds its batch or its part: at most about 500,000 unique captions, 1 GB. One
task joins the links, with about 100 bytes per linked caption.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.pipelines.algorithms.captions import caption_hash, normalise_caption
from pairloom.pipelines.algorithms.forest import forest, roots_of
from pairloom.pipelines.algorithms.minhash import NUM_BANDS, NUM_SLOTS, num_equal_slots, pairs_of_band, signatures
from pairloom.pipelines.engine.batches import Batch, BatchLimits
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table
from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class CaptionLimits:
    """Sizes of tasks."""

    captions_per_part: int = 500_000  # unique captions, about 1 GB
    batches: BatchLimits = field(default_factory=BatchLimits)


DEFAULT_LIMITS = CaptionLimits()
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


class Tables:
    """The spill tables between the rounds."""

    def __init__(self, folder: str, num_batches: int, num_parts: int) -> None:
        def table(name: str, num_files: int, num_readers: int) -> SpillTable:
            return SpillTable(storage.join(folder, name), num_files, num_readers)

        self.num_parts = num_parts
        self.signed = table("signed", num_batches, num_parts)
        self.captions = table("captions", num_parts, 1)
        self.words = table("words", num_parts, num_parts)
        self.pairs = table("pairs", num_parts, num_parts)
        self.halves = table("halves", num_parts, num_parts)
        self.links = table("links", num_parts, 1)
        self.sizes = table("sizes", num_parts, 1)
        self.groups = table("groups", 1, num_parts)
        self.counted = table("counted", num_parts, num_batches)

    def captions_of_part(self, part: int) -> Rows:
        """The unique captions of one part, sorted by hash."""
        return self.captions.read(0, only=part)


@dataclass(frozen=True)
class Job:
    """The arguments that all tasks share."""

    threshold: float
    tables: Tables


def captions_of(raw_folder: str, shard_name: str) -> tuple[pa.ChunkedArray, npt.NDArray[np.bool_], list[str]]:
    """Of a raw shard: uids, whether each row has an image, and the normalised captions of rows with one."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    has_image = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
    chosen = raw["caption"].filter(pa.array(has_image, pa.bool_())).to_pylist()
    return raw["uid"], has_image, [normalise_caption(caption or "") for caption in chosen]


def hashes_of(normalised: list[str]) -> Hashes:
    """64-bit hashes of normalised captions."""
    return np.array([caption_hash(caption) for caption in normalised], np.uint64)


def sign_batch(job: Job, batch: Batch) -> None:
    """Write the signatures of the unique captions of one batch."""
    signed = _merged(np.concatenate([_sign_shard(batch, name) for _, name in batch.shards]))
    job.tables.signed.write(batch.index, signed, spread(signed["hash"], job.tables.num_parts))


def _sign_shard(batch: Batch, name: str) -> Rows:
    _, _, captions = captions_of(batch.folders.raw, name)
    hashes, first, counts = np.unique(hashes_of(captions), return_index=True, return_counts=True)
    bands = signatures([captions[index] for index in first.tolist()])
    batches = np.full(len(hashes), batch.index, np.int32)
    return pack({"hash": hashes, "num_equal": counts.astype(np.int64), "batch": batches, "bands": bands})


def _merged(rows: Rows) -> Rows:
    """One record per caption, sorted by hash, with summed counts."""
    hashes, first, caption_of = np.unique(rows["hash"], return_index=True, return_inverse=True)
    merged: Rows = rows[first]
    merged["num_equal"] = _sums(caption_of, rows["num_equal"], len(hashes))
    return merged


def _sums(member_of: npt.NDArray[np.intp], counts: Counts, num: int) -> Counts:
    """Sum of the counts per member; exact up to 2^53."""
    return np.bincount(member_of, counts, num).astype(np.int64)


def merge_part(job: Job, part: int) -> None:
    """Count the captions of one part over all batches, and write the words of their bands."""
    tables = job.tables
    captions = _merged(tables.signed.read(part))
    tables.captions.write(part, captions, np.zeros(len(captions), np.int64))
    salts = np.arange(1, NUM_BANDS + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )  # so that bands of different index differ
    words = (captions["bands"] ^ salts).T.ravel()
    rows = pack({"word": words, "hash": np.tile(captions["hash"], NUM_BANDS)})
    tables.words.write(part, rows, spread(words, tables.num_parts))


def pair_part(job: Job, part: int) -> None:
    """Pairs of captions that share a word."""
    rows = job.tables.words.read(part)
    left, right = pairs_of_band(np.ascontiguousarray(rows["word"]), np.lexsort((rows["hash"], rows["word"])))
    pairs = np.unique(pack({"left": rows["hash"][left], "right": rows["hash"][right]}))
    job.tables.pairs.write(part, pairs, spread(pairs["left"], job.tables.num_parts))


def first_part(job: Job, part: int) -> None:
    """Add the signatures of the first captions, which are in this part, to the pairs."""
    pairs, captions = np.unique(job.tables.pairs.read(part)), job.tables.captions_of_part(part)
    first = captions[np.searchsorted(captions["hash"], pairs["left"])]
    names = {"left": pairs["left"], "right": pairs["right"]}
    rows = pack({**names, "num_equal": first["num_equal"], "bands": first["bands"]})
    job.tables.halves.write(part, rows, spread(pairs["right"], job.tables.num_parts))


def second_part(job: Job, part: int) -> None:
    """Keep the near pairs; their second captions are in this part."""
    tables = job.tables
    pairs, captions = tables.halves.read(part), tables.captions_of_part(part)
    second = captions[np.searchsorted(captions["hash"], pairs["right"])]
    is_near = num_equal_slots(pairs["bands"], second["bands"]) >= job.threshold * NUM_SLOTS
    pairs, second = pairs[is_near], second[is_near]
    links = forest(pairs["left"], pairs["right"])
    tables.links.write(part, links, np.zeros(len(links), np.int64))
    hashes = np.concatenate([pairs["left"], second["hash"]])
    sizes = np.unique(pack({"hash": hashes, "num_equal": np.concatenate([pairs["num_equal"], second["num_equal"]])}))
    tables.sizes.write(part, sizes, np.zeros(len(sizes), np.int64))


def join_links(job: Job, _: int) -> None:
    """Write the group of each linked caption, and the group's number of samples."""
    sizes, links = np.unique(job.tables.sizes.read(0)), job.tables.links.read(0)
    roots = roots_of(sizes["hash"], forest(links["node"], links["root"]))
    groups, group_of = np.unique(roots, return_inverse=True)
    num_near = _sums(group_of, sizes["num_equal"], len(groups))[group_of]
    rows = pack({"hash": sizes["hash"], "group": roots, "num_near": num_near})
    job.tables.groups.write(0, rows, spread(rows["hash"], job.tables.num_parts))


def count_part(job: Job, part: int) -> None:
    """Write the values of each caption of one part, by the batches that contain it."""
    tables = job.tables
    captions, groups = tables.captions_of_part(part), tables.groups.read(part)
    group, num_near = captions["hash"].copy(), captions["num_equal"].copy()  # right for captions without a link
    positions = np.searchsorted(captions["hash"], groups["hash"])
    group[positions], num_near[positions] = groups["group"], groups["num_near"]
    signed = tables.signed.read(part)
    here = np.searchsorted(captions["hash"], signed["hash"])
    counts = {"num_equal": captions["num_equal"][here], "num_near": num_near[here]}
    rows = pack({"hash": signed["hash"], "group": group[here], **counts})
    tables.counted.write(part, rows, signed["batch"])
