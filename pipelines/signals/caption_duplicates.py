"""caption_duplicates: how many samples of the whole data set have the same caption, or nearly the same.

Captions are compared after NFKC, case folding and collapsing of spaces. Two are near where their MinHash signatures
agree in at least `threshold` of 128 places (`minhash`); groups join what is linked, chains included. Nothing is
dropped here: equal captions of different images are no duplicates by themselves. Score rules may look at the counts.

    shards -> signatures of their different captions (files) -> pairs that share a band -> groups -> columns

The driver holds about 60 bytes a different caption of each shard; signatures stay in files, but for candidates.
Nothing depends on the order of shards or on the number of workers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pipelines.dedupe.components import Indices, connect
from pipelines.dedupe.slim import caption_hash, normalise_caption
from pipelines.run_step import run_shards
from pipelines.signals.minhash import NUM_BANDS, NUM_PLACES, Signatures, num_equal_places, pairs_of_band, signatures
from schemas import storage
from schemas.manifest import table_url
from schemas.sample import STATUS_SUCCESS, read_table, write_table

VERSION = 1
CAPTION_DUPLICATES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("caption_group", pa.string()),  # 16 hex: the smallest hash of the captions that are linked
        pa.field("num_equal_captions", pa.int32()),  # samples of this caption, this one included
        pa.field("num_near_captions", pa.int32()),  # samples of the group, this one included
    ]
)
_MEASURED = list(CAPTION_DUPLICATES)[1:]


@dataclass(frozen=True)
class CaptionGroups:
    """What is known of the different captions of one shard, in the order of their hashes."""

    name: str
    caption: npt.NDArray[np.uint64]  # hash
    group: npt.NDArray[np.uint64]  # smallest hash of the group
    num_equal: npt.NDArray[np.int64]
    num_near: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Captions:
    """The different captions of all shards: those of a shard together, in the order of their hashes."""

    hashes: npt.NDArray[np.uint64]
    num_samples: npt.NDArray[np.int64]
    edges: Indices  # [shards + 1]: where those of each shard begin


def measure_caption_duplicates(
    name: str, threshold: float, raw_folder: str, folder: str, shard_names: list[str], todo: list[str]
) -> None:
    """Write the columns of the shards `todo`, counted over all of `shard_names`."""
    if not todo:
        return
    step = f"signals {name}"
    signed = run_shards(f"{step}: signatures", partial(_sign_shard, raw_folder, folder), shard_names)
    edges = np.cumsum([0, *(len(hashes) for hashes, _ in signed)])
    empty = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    hashes, num_samples = (np.concatenate(parts) for parts in zip(*signed, *empty, strict=True))
    captions = Captions(hashes, num_samples, edges)
    groups = _group(step, threshold, folder, shard_names, captions)
    wanted = set(todo)
    items = [groups[place] for place, shard_name in enumerate(shard_names) if shard_name in wanted]
    run_shards(step, partial(_write_shard, raw_folder, folder), items, len(shard_names) - len(items))
    for shard_name in shard_names:
        storage.remove(_signatures_url(folder, shard_name))


def _signatures_url(folder: str, shard_name: str) -> str:
    return storage.join(folder, "scratch", f"{shard_name}.npy")


def _captions_of(raw_folder: str, shard_name: str) -> tuple[pa.Table, npt.NDArray[np.bool_], list[str]]:
    """The table of a raw shard, which of its rows have an image, and their captions, normalised."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    has_image = np.asarray(raw["status"].to_pylist()) == STATUS_SUCCESS
    chosen = raw["caption"].filter(pa.array(has_image, pa.bool_())).to_pylist()
    return raw, has_image, [normalise_caption(caption or "") for caption in chosen]


def _hashes(normalised: list[str]) -> npt.NDArray[np.uint64]:
    return np.array([caption_hash(caption) for caption in normalised], np.uint64)


def _sign_shard(raw_folder: str, folder: str, shard_name: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Write the signatures of a shard's different captions, band by band; returns their hashes and their counts."""
    _, _, captions = _captions_of(raw_folder, shard_name)
    hashes, first, counts = np.unique(_hashes(captions), return_index=True, return_counts=True)
    signed = signatures([captions[place] for place in first.tolist()])
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(signed.T))
    storage.put_bytes(_signatures_url(folder, shard_name), sink.getvalue())
    return hashes, counts


def _group(step: str, threshold: float, folder: str, shard_names: list[str], captions: Captions) -> list[CaptionGroups]:
    """Groups of near captions over all shards, told shard by shard."""
    hashes, first, caption_of = np.unique(captions.hashes, return_index=True, return_inverse=True)
    shared = [ray.put((first, captions.edges))]  # in a list, so that a task takes the reference and not a copy
    found = run_shards(f"{step}: bands", partial(_pairs_of_band, folder, shard_names, shared), list(range(NUM_BANDS)))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(found)), max(1, len(hashes))), axis=1)
    members, places = np.unique(pairs, return_inverse=True)
    signed = _signatures_of(step, folder, shard_names, captions.edges, first[members])
    left, right = places.reshape(-1, 2).T
    near = num_equal_places(signed[left], signed[right]) >= threshold * NUM_PLACES
    group = connect(len(hashes), pairs[near, 0], pairs[near, 1])
    num_equal = np.bincount(caption_of, captions.num_samples, len(hashes)).astype(np.int64)
    num_near = np.bincount(group, num_equal, len(hashes)).astype(np.int64)[group]
    told = []
    for place, name in enumerate(shard_names):
        mine = caption_of[captions.edges[place] : captions.edges[place + 1]]
        told.append(CaptionGroups(name, hashes[mine], hashes[group[mine]], num_equal[mine], num_near[mine]))
    return told


def _pairs_of_band(folder: str, shard_names: list[str], shared: list[Any], band: int) -> npt.NDArray[np.int64]:
    """Pairs of captions that share a band: smaller place * number of different captions + larger place."""
    first, edges = ray.get(shared[0])
    words = np.empty(int(edges[-1]), np.uint64)
    for place, name in enumerate(shard_names):
        words[edges[place] : edges[place + 1]] = _read_signatures(folder, name)[band]
    words = words[first]
    left, right = pairs_of_band(words, np.argsort(words, kind="stable"))
    return np.unique(left * len(words) + right)


def _read_signatures(folder: str, shard_name: str) -> npt.NDArray[np.uint64]:
    """Signatures of a shard's different captions: [NUM_BANDS, captions]."""
    url = _signatures_url(folder, shard_name)
    if storage.is_local(url):
        return np.asarray(np.load(storage.local_path(url), mmap_mode="r"))
    return np.asarray(np.load(io.BytesIO(storage.read_bytes(url))))


def _signatures_of(step: str, folder: str, shard_names: list[str], edges: Indices, places: Indices) -> Signatures:
    """Signatures of some captions, by their places in all shards' lists; each shard is read once."""
    found = np.empty((len(places), NUM_BANDS), np.uint64)
    shard_of = np.searchsorted(edges, places, side="right") - 1
    parts = [np.flatnonzero(shard_of == shard) for shard in np.unique(shard_of)]
    items = [(shard_names[shard_of[part[0]]], places[part] - edges[shard_of[part[0]]]) for part in parts]
    for part, signed in zip(parts, run_shards(f"{step}: candidates", partial(_take, folder), items), strict=True):
        found[part] = signed
    return found


def _take(folder: str, item: tuple[str, Indices]) -> Signatures:
    name, places = item
    return np.ascontiguousarray(_read_signatures(folder, name)[:, places].T)


def _hex(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    return np.array([f"{value:016x}" for value in hashes.tolist()], "U16")


def _write_shard(raw_folder: str, folder: str, groups: CaptionGroups) -> None:
    """Write the columns of one shard; rows without an image are null."""
    raw, has_image, captions = _captions_of(raw_folder, groups.name)
    place = np.searchsorted(groups.caption, _hashes(captions))
    rows = np.flatnonzero(has_image)
    columns: list[Any] = [raw["uid"]]
    for values, field in zip((_hex(groups.group), groups.num_equal, groups.num_near), _MEASURED, strict=True):
        column = np.zeros(len(has_image), values.dtype)
        column[rows] = values[place]
        columns.append(pa.array(column, field.type, mask=~has_image))
    write_table(table_url(folder, groups.name), pa.table(columns, schema=CAPTION_DUPLICATES))
