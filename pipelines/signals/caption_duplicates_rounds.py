"""The rounds of tasks that find near captions: batches of shards are read, parts of the captions are compared.

    sign     batch of shards -> its different captions with their signatures, by part of their hash
    merge    part of the captions -> counts over all batches; the words of the bands, by part of the word
    pair     part of the words -> pairs of captions that share one, by part of the first caption
    compare  part of the first captions -> the pairs with its signature, by part of the second; there the links
    join     all links -> the group of each linked caption and how many samples it has
    count    part of the captions -> what to write, by batch

Between the rounds lie files (`spill`). A task holds its batch, or its part: at most about 500,000 different
captions, 1 GB. One task joins the links, about 100 bytes each linked caption.
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

    captions_per_part: int = 500_000  # different ones: about 1 GB
    batches: BatchLimits = field(default_factory=BatchLimits)


DEFAULT_LIMITS = CaptionLimits()
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


class Tables:
    """What lies between the rounds."""

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
        """The different captions of one part, in the order of their hashes."""
        return self.captions.read(0, only=part)


@dataclass(frozen=True)
class Job:
    """What every task needs to know."""

    threshold: float
    tables: Tables


def captions_of(raw_folder: str, shard_name: str) -> tuple[pa.ChunkedArray, npt.NDArray[np.bool_], list[str]]:
    """The uids of a raw shard, which of its rows have an image, and the captions of these, normalised."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    has_image = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
    chosen = raw["caption"].filter(pa.array(has_image, pa.bool_())).to_pylist()
    return raw["uid"], has_image, [normalise_caption(caption or "") for caption in chosen]


def hashes_of(normalised: list[str]) -> Hashes:
    """A hash of each caption."""
    return np.array([caption_hash(caption) for caption in normalised], np.uint64)


def sign_batch(job: Job, batch: Batch) -> None:
    """Sign the different captions of some shards."""
    signed = _merged(np.concatenate([_sign_shard(batch, name) for _, name in batch.shards]))
    job.tables.signed.write(batch.index, signed, spread(signed["hash"], job.tables.num_parts))


def _sign_shard(batch: Batch, name: str) -> Rows:
    _, _, captions = captions_of(batch.folders.raw, name)
    hashes, first, counts = np.unique(hashes_of(captions), return_index=True, return_counts=True)
    bands = signatures([captions[place] for place in first.tolist()])
    batches = np.full(len(hashes), batch.index, np.int32)
    return pack({"hash": hashes, "num_equal": counts.astype(np.int64), "batch": batches, "bands": bands})


def _merged(rows: Rows) -> Rows:
    """One record a caption, in the order of their hashes: counts added."""
    hashes, first, caption_of = np.unique(rows["hash"], return_index=True, return_inverse=True)
    merged: Rows = rows[first]
    merged["num_equal"] = _sums(caption_of, rows["num_equal"], len(hashes))
    return merged


def _sums(member_of: npt.NDArray[np.intp], counts: Counts, num: int) -> Counts:
    """Counts added up by what they belong to; exact up to 2^53."""
    return np.bincount(member_of, counts, num).astype(np.int64)


def merge_part(job: Job, part: int) -> None:
    """Count the captions of one part over all batches, and hand out the words of their bands."""
    tables = job.tables
    captions = _merged(tables.signed.read(part))
    tables.captions.write(part, captions, np.zeros(len(captions), np.int64))
    salts = np.arange(1, NUM_BANDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # a band meets only itself
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
    """Give the pairs the signatures of their first captions, which lie in this part."""
    pairs, captions = np.unique(job.tables.pairs.read(part)), job.tables.captions_of_part(part)
    first = captions[np.searchsorted(captions["hash"], pairs["left"])]
    names = {"left": pairs["left"], "right": pairs["right"]}
    rows = pack({**names, "num_equal": first["num_equal"], "bands": first["bands"]})
    job.tables.halves.write(part, rows, spread(pairs["right"], job.tables.num_parts))


def second_part(job: Job, part: int) -> None:
    """Keep the pairs that are near; their second captions lie in this part."""
    tables = job.tables
    pairs, captions = tables.halves.read(part), tables.captions_of_part(part)
    second = captions[np.searchsorted(captions["hash"], pairs["right"])]
    near = num_equal_slots(pairs["bands"], second["bands"]) >= job.threshold * NUM_SLOTS
    pairs, second = pairs[near], second[near]
    links = forest(pairs["left"], pairs["right"])
    tables.links.write(part, links, np.zeros(len(links), np.int64))
    hashes = np.concatenate([pairs["left"], second["hash"]])
    sizes = np.unique(pack({"hash": hashes, "num_equal": np.concatenate([pairs["num_equal"], second["num_equal"]])}))
    tables.sizes.write(part, sizes, np.zeros(len(sizes), np.int64))


def join_links(job: Job, _: int) -> None:
    """The group of each linked caption, and how many samples it has."""
    sizes, links = np.unique(job.tables.sizes.read(0)), job.tables.links.read(0)
    roots = roots_of(sizes["hash"], forest(links["node"], links["root"]))
    groups, group_of = np.unique(roots, return_inverse=True)
    num_near = _sums(group_of, sizes["num_equal"], len(groups))[group_of]
    rows = pack({"hash": sizes["hash"], "group": roots, "num_near": num_near})
    job.tables.groups.write(0, rows, spread(rows["hash"], job.tables.num_parts))


def count_part(job: Job, part: int) -> None:
    """What to write of each caption of one part, for the batches that have it."""
    tables = job.tables
    captions, groups = tables.captions_of_part(part), tables.groups.read(part)
    group, num_near = captions["hash"].copy(), captions["num_equal"].copy()  # of captions without a link
    places = np.searchsorted(captions["hash"], groups["hash"])
    group[places], num_near[places] = groups["group"], groups["num_near"]
    signed = tables.signed.read(part)
    here = np.searchsorted(captions["hash"], signed["hash"])
    counts = {"num_equal": captions["num_equal"][here], "num_near": num_near[here]}
    rows = pack({"hash": signed["hash"], "group": group[here], **counts})
    tables.counted.write(part, rows, signed["batch"])
