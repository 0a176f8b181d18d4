"""Placeholders: one image under many unlike captions from many domains, such as "image not found".

Popular product photographs come from many domains too, but their captions are alike: the mean Jaccard similarity of
the captions' 4-grams tells the two apart. A group is dropped whole: none of its captions describes the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pairloom.pipelines.algorithms.captions import normalise_caption
from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.dedupe.sample_records import Slim, read_captions
from pairloom.schemas.recipes.dedupe import PlaceholderRecipe

NUM_COMPARED = 50  # captions of a group, those of the smallest uids: a random choice, the same in any order
GRAM = 4  # characters


def placeholder_images(slim: Slim, image_of: Indices, rule: PlaceholderRecipe, tables: Sequence[str]) -> Indices:
    """The images that are placeholders. `image_of`: one sample of the image that each sample shows.

    `tables`: the URL of each shard's raw table.
    """
    num_captions = _num_distinct(image_of, slim.caption)
    num_domains = _num_distinct(image_of[slim.domain > 0], slim.domain[slim.domain > 0], len(image_of))
    chosen = np.flatnonzero((num_captions >= rule.min_captions) & (num_domains >= rule.min_domains))
    captions = _captions(slim, image_of, chosen, tables)
    similar = np.array([mean_similarity(texts) for texts in captions], np.float64)
    return chosen[similar <= rule.max_caption_similarity]


def _num_distinct(groups: Indices, values: np.typing.NDArray[np.generic], num_groups: int | None = None) -> Indices:
    """Number of distinct values in each group."""
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (groups[1:] != groups[:-1]) | (values[1:] != values[:-1])
    return np.bincount(groups[is_new], minlength=num_groups or len(order))


def _captions(slim: Slim, image_of: Indices, images: Indices, tables: Sequence[str]) -> list[list[str]]:
    """Different captions of some images, at most NUM_COMPARED of each; each shard is read once."""
    order = np.argsort(image_of, kind="stable")
    first, last = np.searchsorted(image_of[order], images), np.searchsorted(image_of[order], images + 1)
    samples_of = []
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        samples = order[start:stop]
        _, different = np.unique(slim.caption[samples], return_index=True)
        samples_of.append(samples[np.sort(different)[:NUM_COMPARED]])
    if not samples_of:
        return []
    samples = np.concatenate(samples_of)
    by_shard = np.lexsort((slim.row[samples], slim.shard[samples]))
    shards, starts = np.unique(slim.shard[samples][by_shard], return_index=True)
    rows = np.split(slim.row[samples][by_shard], starts[1:])
    read = [read_captions(tables[shard], part) for shard, part in zip(shards.tolist(), rows, strict=True)]
    text_of = dict(zip(samples[by_shard].tolist(), (text for part in read for text in part), strict=True))
    return [[text_of[sample] for sample in part.tolist()] for part in samples_of]


def mean_similarity(captions: list[str]) -> float:
    """Mean Jaccard similarity of the captions' sets of 4-grams, over all pairs."""
    grams = [_grams(normalise_caption(caption)) for caption in captions]
    values = [len(one & other) / max(1, len(one | other)) for one, other in combinations(grams, 2)]
    return sum(values) / max(1, len(values))


def _grams(text: str) -> set[str]:
    return {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
