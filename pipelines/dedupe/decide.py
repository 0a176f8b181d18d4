"""Decisions over samples that nothing links to any other: exact duplicates, near-duplicates, and their groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.union_find import Indices, connect
from pairloom.pipelines.dedupe.criteria.contamination import find_hits
from pairloom.pipelines.dedupe.criteria.evaluation_set import EvaluationImages
from pairloom.pipelines.dedupe.criteria.exact import best_of, best_of_captions, equal_images
from pairloom.pipelines.dedupe.criteria.near import Near, near_duplicates
from pairloom.pipelines.dedupe.criteria.placeholders import placeholder_images
from pairloom.pipelines.dedupe.sample_records import Slim
from pairloom.pipelines.dedupe.summary import Contamination, Figures, GroupSizes
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.recipes.dedupe import DedupeRecipe, PlaceholderRecipe

REASONS = (
    None,
    DropReason.EXACT_DUPLICATE,
    DropReason.CAPTION_OF_KEPT_IMAGE,
    DropReason.PERCEPTUAL_DUPLICATE,
    DropReason.SEMANTIC_DUPLICATE,
    DropReason.CONTAMINATED,
    DropReason.PLACEHOLDER,
)
EXACT, CAPTION, PERCEPTUAL, SEMANTIC, CONTAMINATED, PLACEHOLDER = 1, 2, 3, 4, 5, 6  # places in REASONS


@dataclass(frozen=True)
class Known:
    """What is the same for every part."""

    sets: Sequence[EvaluationImages]  # one for each rule of `decontaminate`
    feature_folders: Sequence[str | None]  # clip signal of each rule; None: it compares no features
    tables: Sequence[str]  # URL of the raw table of each shard, as `Slim.shard` numbers them
    num_own: int  # shards; those after them belong to earlier data sets
    with_features: npt.NDArray[np.bool_]  # of each batch: semantic dedupe compares its images


@dataclass
class Decisions:
    """One entry a sample with an image, in the order of the uids."""

    reason: npt.NDArray[np.int8]  # place in REASONS
    kept_instead: Indices  # the sample itself where it is kept
    distance: npt.NDArray[np.int32]  # bits; -1 where bits did not decide
    similarity: npt.NDArray[np.float32]  # cosine; nan where features did not decide
    evaluation: npt.NDArray[np.int32]  # [rows, 2]: set and place of the evaluation image that it is near, or -1
    group: Indices  # smallest sample of its component
    best_sample: Indices  # of the same image: all samples of an image stay or go together


def decide(slim: Slim, settings: DedupeRecipe, known: Known) -> tuple[Decisions, Figures]:
    """All decisions but the semantic ones, and what the manifest tells about them."""
    ranks = keep_ranks(slim, settings.keep, known.num_own)
    image_of = equal_images(slim)  # an image is named by its first sample
    best_sample = best_of(image_of, ranks)  # of the image of each sample
    decisions = _decide_exact(slim, settings, ranks, image_of, best_sample)
    sizes = np.bincount(image_of, minlength=slim.num_rows)
    figures = Figures([], int((sizes > 0).sum()), GroupSizes.of(slim.uid, sizes))
    is_image = (best_sample == np.arange(slim.num_rows)) & slim.has_phash
    figures.contamination += _drop_contaminated(decisions, slim, settings, known.sets)
    is_image &= decisions.reason != CONTAMINATED
    if settings.perceptual is not None:
        needs_256 = settings.perceptual.bits == 256 or settings.perceptual.max_distance_256 is not None
        images = np.flatnonzero(is_image & slim.has_phash256 if needs_256 else is_image)
        images = images[np.argsort(ranks[images])]
        near = near_duplicates(slim, images, settings.perceptual)
        _drop_near(decisions, images, near)
        figures.num_flat_images = int(near.is_flat.sum())
        figures.num_flat_duplicates = int((near.is_flat & (near.kept_instead >= 0)).sum())
    if settings.placeholders is not None:
        _drop_placeholders(decisions, slim, settings.placeholders, known.tables)
    figures.groups = GroupSizes.of(slim.uid, np.bincount(decisions.group, minlength=slim.num_rows))
    return decisions, figures


def keep_ranks(slim: Slim, keep: str, num_own: int) -> Indices:
    """Place of each sample in the keep order: 0 is kept before all others. Samples are in the order of their uids.

    Samples of earlier data sets (`against`) come before our own: they are there already.
    """
    order = keep_order(keep, slim.preference, slim.score, slim.area, slim.shard < num_own)
    ranks = np.empty(slim.num_rows, np.int64)
    ranks[order] = np.arange(slim.num_rows)
    return ranks


def keep_order(
    keep: str,
    preference: npt.NDArray[np.int32],
    score: npt.NDArray[np.float32],
    area: npt.NDArray[np.int64],
    is_own: npt.NDArray[np.bool_],
) -> Indices:
    """Samples, the one kept before all others first; they are in the order of their uids, which decides last."""
    smallest_uid = np.arange(len(area))
    scored = np.where(np.isnan(score), -np.inf, score)
    orders = {
        "largest": (smallest_uid, -area),
        "highest_score": (smallest_uid, -area, -scored),
        "smallest_uid": (smallest_uid,),
    }
    return np.lexsort((*orders[keep], preference, is_own))


def _decide_exact(
    slim: Slim, settings: DedupeRecipe, ranks: Indices, image_of: Indices, best_sample: Indices
) -> Decisions:
    """Samples of one image: same caption, and other captions where only one is wanted."""
    samples = np.arange(slim.num_rows)
    reason, kept_instead = np.zeros(slim.num_rows, np.int8), samples
    if settings.exact:
        best_caption = best_of_captions(image_of, slim.caption, ranks)
        kept_instead = best_caption
        if settings.same_image_captions == "keep_one":
            kept_instead = best_sample
            reason[best_sample != samples] = CAPTION
        reason[best_caption != samples] = EXACT
    return Decisions(
        reason,
        kept_instead.copy(),
        distance=np.zeros(slim.num_rows, np.int32),
        similarity=np.full(slim.num_rows, np.nan, np.float32),
        evaluation=np.full((slim.num_rows, 2), -1, np.int32),
        group=image_of,
        best_sample=best_sample,
    )


def _drop_contaminated(
    decisions: Decisions, slim: Slim, settings: DedupeRecipe, sets: Sequence[EvaluationImages]
) -> list[Contamination]:
    """Drop all samples of the images that an evaluation set holds; returns what was hit, set by set.

    The first set that an image is near is the one that its samples name. Nearness of features was found as the
    samples were read; all samples of an image follow the nearest of them.
    """
    best_sample = decisions.best_sample
    num_samples = np.bincount(best_sample, minlength=slim.num_rows)
    images = np.flatnonzero((num_samples > 0) & slim.has_phash)
    found = []
    for number, (rule, evaluation) in enumerate(zip(settings.decontaminate, sets, strict=True)):
        pairs = find_hits(slim, images, evaluation, rule)
        nearest = pairs.nearest()
        hit = _Hit.nowhere(slim.num_rows)
        by_features = np.flatnonzero(slim.alike[:, number] >= 0)
        by_features = by_features[np.argsort(slim.similarity[by_features, number], kind="stable")]  # the nearest last
        hit.place[best_sample[by_features]] = slim.alike[by_features, number]
        hit.similarity[best_sample[by_features]] = slim.similarity[by_features, number]
        hit.place[images[nearest.image]], hit.distance[images[nearest.image]] = nearest.evaluation, nearest.distance
        samples = np.flatnonzero(hit.place[best_sample] >= 0)
        _contaminate(decisions, samples, hit, number)
        by_phash: Counter[int] = Counter()
        for image, place in zip(images[pairs.image].tolist(), pairs.evaluation.tolist(), strict=True):
            by_phash[place] += int(num_samples[image])
        found.append(Contamination(by_phash, Counter(), int((hit.place >= 0).sum()), len(samples)))
    return found


@dataclass
class _Hit:
    """The evaluation image that each image, by its best sample, is near."""

    place: npt.NDArray[np.int32]  # in the set; -1: none
    distance: npt.NDArray[np.int32]
    similarity: npt.NDArray[np.float32]

    @staticmethod
    def nowhere(num_rows: int) -> _Hit:
        """No image is near any."""
        minus = np.full(num_rows, -1, np.int32)
        return _Hit(minus, minus.copy(), np.full(num_rows, np.nan, np.float32))


def _contaminate(decisions: Decisions, samples: Indices, hit: _Hit, number: int) -> None:
    """Drop some samples for what their images are near; what an earlier set was told of stays."""
    images = decisions.best_sample[samples]
    new = decisions.reason[samples] != CONTAMINATED
    samples, images = samples[new], images[new]
    decisions.reason[samples], decisions.kept_instead[samples] = CONTAMINATED, samples
    decisions.distance[samples], decisions.similarity[samples] = hit.distance[images], hit.similarity[images]
    decisions.evaluation[samples, 0], decisions.evaluation[samples, 1] = number, hit.place[images]


def _drop_placeholders(decisions: Decisions, slim: Slim, rule: PlaceholderRecipe, tables: Sequence[str]) -> None:
    """Drop placeholders whole: a kept image with all that are near it, for they are encoded anew as they spread."""
    kept_image = decisions.best_sample[decisions.kept_instead]
    is_placeholder = np.zeros(slim.num_rows, bool)
    is_placeholder[placeholder_images(slim, kept_image, rule, tables)] = True
    samples = np.flatnonzero(is_placeholder[kept_image] & (decisions.reason != CONTAMINATED))
    decisions.reason[samples], decisions.kept_instead[samples] = PLACEHOLDER, samples
    decisions.distance[samples] = -1


def _drop_near(decisions: Decisions, images: Indices, near: Near) -> None:
    """Drop all samples of the images that have a kept one near; join the groups of all that are near."""
    best_sample = decisions.best_sample
    kept_image = np.arange(len(best_sample))  # by the best sample of each image
    distance = np.zeros(len(best_sample), np.int32)
    dropped = near.kept_instead >= 0
    kept_image[images[dropped]] = images[near.kept_instead[dropped]]
    distance[images[dropped]] = near.distance[dropped]
    samples = np.flatnonzero(kept_image[best_sample] != best_sample)
    decisions.kept_instead[samples] = kept_image[best_sample[samples]]
    decisions.distance[samples] = distance[best_sample[samples]]
    decisions.reason[samples] = np.where(decisions.reason[samples] == 0, PERCEPTUAL, decisions.reason[samples])
    everyone = np.arange(len(best_sample))
    left, right = np.concatenate([everyone, images]), np.concatenate([decisions.group, images[near.root]])
    decisions.group = connect(len(everyone), left, right)
