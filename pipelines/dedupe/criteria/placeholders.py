"""Placeholders: one image under many unlike captions from many domains, such as "image not found".

Popular product photographs also come from many domains, but their captions are similar: the mean Jaccard similarity of
the captions' 4-grams separates both cases. All samples of a placeholder are dropped: no caption describes the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pairloom.pipelines.algorithms.captions import normalise_caption
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.dedupe.sample_records import SampleRecords, read_captions
from pairloom.schemas.recipes.dedupe import PlaceholderRecipe

NUM_COMPARED = 50  # captions per group: those of the smallest uids, a random but fixed choice
GRAM = 4  # characters


def placeholder_images(
    records: SampleRecords, image_of: Indices, rule: PlaceholderRecipe, tables: Sequence[str]
) -> Indices:
    """The placeholder images. `image_of`: per sample, one sample that represents its image.

    `tables`: URL of the raw table of each shard.
    """
    num_captions = _num_unique(image_of, records.caption)
    num_domains = _num_unique(image_of[records.domain > 0], records.domain[records.domain > 0], len(image_of))
    chosen = np.flatnonzero((num_captions >= rule.min_captions) & (num_domains >= rule.min_domains))
    captions = _captions(records, image_of, chosen, tables)
    similar = np.array([mean_similarity(texts) for texts in captions], np.float64)
    return chosen[similar <= rule.max_caption_similarity]


def _num_unique(groups: Indices, values: np.typing.NDArray[np.generic], num_groups: int | None = None) -> Indices:
    """Number of unique values per group."""
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (groups[1:] != groups[:-1]) | (values[1:] != values[:-1])
    return np.bincount(groups[is_new], minlength=num_groups or len(order))


def _captions(records: SampleRecords, image_of: Indices, images: Indices, tables: Sequence[str]) -> list[list[str]]:
    """Unique captions of the given images, at most NUM_COMPARED per image; each shard is read once."""
    order = np.argsort(image_of, kind="stable")
    first, last = np.searchsorted(image_of[order], images), np.searchsorted(image_of[order], images + 1)
    samples_of = []
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        samples = order[start:stop]
        _, first_of_caption = np.unique(records.caption[samples], return_index=True)
        samples_of.append(samples[np.sort(first_of_caption)[:NUM_COMPARED]])
    if not samples_of:
        return []
    samples = np.concatenate(samples_of)
    by_shard = np.lexsort((records.row[samples], records.shard[samples]))
    shards, starts = np.unique(records.shard[samples][by_shard], return_index=True)
    rows = np.split(records.row[samples][by_shard], starts[1:])
    read = [read_captions(tables[shard], part) for shard, part in zip(shards.tolist(), rows, strict=True)]
    text_of = dict(zip(samples[by_shard].tolist(), (text for part in read for text in part), strict=True))
    return [[text_of[sample] for sample in part.tolist()] for part in samples_of]


def mean_similarity(captions: list[str]) -> float:
    """Mean Jaccard similarity of the captions' sets of 4-grams over all pairs."""
    grams = [_grams(normalise_caption(caption)) for caption in captions]
    values = [len(one & other) / max(1, len(one | other)) for one, other in combinations(grams, 2)]
    return sum(values) / max(1, len(values))


def _grams(text: str) -> set[str]:
    return {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
