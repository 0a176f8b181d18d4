"""Decisions over one closed part of the samples: exact duplicates, near-duplicates, contamination, placeholders."""

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
from pairloom.pipelines.dedupe.criteria.near_duplicates import NearDuplicates, find_near_duplicates
from pairloom.pipelines.dedupe.criteria.placeholders import placeholder_images
from pairloom.pipelines.dedupe.sample_records import SampleRecords
from pairloom.pipelines.dedupe.summary import Contamination, GroupSizes, Summary
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
EXACT, CAPTION, PERCEPTUAL, SEMANTIC, CONTAMINATED, PLACEHOLDER = 1, 2, 3, 4, 5, 6  # indices into REASONS


@dataclass(frozen=True)
class Context:
    """Inputs that all parts share."""

    sets: Sequence[EvaluationImages]  # one per rule of `decontaminate`
    feature_folders: Sequence[str | None]  # clip signal per rule; None: the rule compares no features
    tables: Sequence[str]  # URL of each shard's raw table, indexed by `SampleRecords.shard`
    num_own: int  # own shards; further shards belong to earlier data sets
    with_features: npt.NDArray[np.bool_]  # per batch: whether semantic dedupe compares its images


@dataclass
class Decisions:
    """One entry per sample with an image, sorted by uid."""

    reason: npt.NDArray[np.int8]  # index into REASONS
    kept_instead: Indices  # index of the kept sample; the sample itself if it is kept
    distance: npt.NDArray[np.int32]  # bits; -1: not decided by bits
    similarity: npt.NDArray[np.float32]  # cosine; nan: not decided by features
    evaluation: npt.NDArray[np.int32]  # [rows, 2]: index of set and of the near evaluation image, or -1
    group: Indices  # smallest sample of its component
    best_sample: Indices  # best sample of the same image; all samples of an image are kept or dropped together


def decide(records: SampleRecords, settings: DedupeRecipe, context: Context) -> tuple[Decisions, Summary]:
    """All decisions except the semantic ones, and their summary for the manifest."""
    ranks = keep_ranks(records, settings.keep, context.num_own)
    image_of = equal_images(records)  # an image is identified by its first sample
    best_sample = best_of(image_of, ranks)  # per sample: best sample of its image
    decisions = _decide_exact(records, settings, ranks, image_of, best_sample)
    sizes = np.bincount(image_of, minlength=records.num_rows)
    summary = Summary([], int((sizes > 0).sum()), GroupSizes.of(records.uid, sizes))
    is_image = (best_sample == np.arange(records.num_rows)) & records.has_phash
    summary.contamination += _drop_contaminated(decisions, records, settings, context.sets)
    is_image &= decisions.reason != CONTAMINATED
    if settings.perceptual is not None:
        needs_256 = settings.perceptual.bits == 256 or settings.perceptual.max_distance_256 is not None
        images = np.flatnonzero(is_image & records.has_phash256 if needs_256 else is_image)
        images = images[np.argsort(ranks[images])]
        near = find_near_duplicates(records, images, settings.perceptual)
        _drop_near(decisions, images, near)
        summary.num_flat_images = int(near.is_flat.sum())
        summary.num_flat_duplicates = int((near.is_flat & (near.kept_instead >= 0)).sum())
    if settings.placeholders is not None:
        _drop_placeholders(decisions, records, settings.placeholders, context.tables)
    summary.groups = GroupSizes.of(records.uid, np.bincount(decisions.group, minlength=records.num_rows))
    return decisions, summary


def keep_ranks(records: SampleRecords, keep: str, num_own: int) -> Indices:
    """Position of each sample in the keep order: 0 is preferred to all others. Samples are sorted by uid.

    Samples of earlier data sets (`against`) come first, because they are already in use.
    """
    order = keep_order(keep, records.preference, records.score, records.area, records.shard < num_own)
    ranks = np.empty(records.num_rows, np.int64)
    ranks[order] = np.arange(records.num_rows)
    return ranks


def keep_order(
    keep: str,
    preference: npt.NDArray[np.int32],
    score: npt.NDArray[np.float32],
    area: npt.NDArray[np.int64],
    is_own: npt.NDArray[np.bool_],
) -> Indices:
    """Sample indices in keep order, the preferred one first. Samples are sorted by uid, which decides ties."""
    smallest_uid = np.arange(len(area))
    scored = np.where(np.isnan(score), -np.inf, score)
    orders = {
        "largest": (smallest_uid, -area),
        "highest_score": (smallest_uid, -area, -scored),
        "smallest_uid": (smallest_uid,),
    }
    return np.lexsort((*orders[keep], preference, is_own))


def _decide_exact(
    records: SampleRecords, settings: DedupeRecipe, ranks: Indices, image_of: Indices, best_sample: Indices
) -> Decisions:
    """Exact duplicates: same image and caption; with `keep_one` also other captions of the image."""
    samples = np.arange(records.num_rows)
    reason, kept_instead = np.zeros(records.num_rows, np.int8), samples
    if settings.exact:
        best_caption = best_of_captions(image_of, records.caption, ranks)
        kept_instead = best_caption
        if settings.same_image_captions == "keep_one":
            kept_instead = best_sample
            reason[best_sample != samples] = CAPTION
        reason[best_caption != samples] = EXACT
    return Decisions(
        reason,
        kept_instead.copy(),
        distance=np.zeros(records.num_rows, np.int32),
        similarity=np.full(records.num_rows, np.nan, np.float32),
        evaluation=np.full((records.num_rows, 2), -1, np.int32),
        group=image_of,
        best_sample=best_sample,
    )


def _drop_contaminated(
    decisions: Decisions, records: SampleRecords, settings: DedupeRecipe, sets: Sequence[EvaluationImages]
) -> list[Contamination]:
    """Drop all samples of images near an evaluation image. Returns the contamination per set.

    Samples name the first set with a near image. Nearness by features was found when the samples were read; the nearest
    sample of an image decides for all its samples.
    """
    best_sample = decisions.best_sample
    num_samples = np.bincount(best_sample, minlength=records.num_rows)
    images = np.flatnonzero((num_samples > 0) & records.has_phash)
    found = []
    for number, (rule, evaluation) in enumerate(zip(settings.decontaminate, sets, strict=True)):
        pairs = find_hits(records, images, evaluation, rule)
        nearest = pairs.nearest()
        hit = _NearestEvaluation.none(records.num_rows)
        by_features = np.flatnonzero(records.nearest_evaluation[:, number] >= 0)
        by_features = by_features[np.argsort(records.similarity[by_features, number], kind="stable")]  # nearest last
        hit.index[best_sample[by_features]] = records.nearest_evaluation[by_features, number]
        hit.similarity[best_sample[by_features]] = records.similarity[by_features, number]
        hit.index[images[nearest.image]], hit.distance[images[nearest.image]] = nearest.evaluation, nearest.distance
        samples = np.flatnonzero(hit.index[best_sample] >= 0)
        _contaminate(decisions, samples, hit, number)
        by_phash: Counter[int] = Counter()
        for image, index in zip(images[pairs.image].tolist(), pairs.evaluation.tolist(), strict=True):
            by_phash[index] += int(num_samples[image])
        found.append(Contamination(by_phash, Counter(), int((hit.index >= 0).sum()), len(samples)))
    return found


@dataclass
class _NearestEvaluation:
    """The nearest evaluation image per image, indexed by the image's best sample."""

    index: npt.NDArray[np.int32]  # in the set; -1: none
    distance: npt.NDArray[np.int32]
    similarity: npt.NDArray[np.float32]

    @staticmethod
    def none(num_rows: int) -> _NearestEvaluation:
        """No image is near an evaluation image."""
        minus = np.full(num_rows, -1, np.int32)
        return _NearestEvaluation(minus, minus.copy(), np.full(num_rows, np.nan, np.float32))


def _contaminate(decisions: Decisions, samples: Indices, hit: _NearestEvaluation, number: int) -> None:
    """Drop contaminated samples, except those that an earlier set has dropped."""
    images = decisions.best_sample[samples]
    new = decisions.reason[samples] != CONTAMINATED
    samples, images = samples[new], images[new]
    decisions.reason[samples], decisions.kept_instead[samples] = CONTAMINATED, samples
    decisions.distance[samples], decisions.similarity[samples] = hit.distance[images], hit.similarity[images]
    decisions.evaluation[samples, 0], decisions.evaluation[samples, 1] = number, hit.index[images]


def _drop_placeholders(
    decisions: Decisions, records: SampleRecords, rule: PlaceholderRecipe, tables: Sequence[str]
) -> None:
    """Drop placeholders: a kept image with all images near it, because copies are often encoded again."""
    kept_image = decisions.best_sample[decisions.kept_instead]
    is_placeholder = np.zeros(records.num_rows, bool)
    is_placeholder[placeholder_images(records, kept_image, rule, tables)] = True
    samples = np.flatnonzero(is_placeholder[kept_image] & (decisions.reason != CONTAMINATED))
    decisions.reason[samples], decisions.kept_instead[samples] = PLACEHOLDER, samples
    decisions.distance[samples] = -1


def _drop_near(decisions: Decisions, images: Indices, near: NearDuplicates) -> None:
    """Drop all samples of images with a kept near-duplicate; join the groups of all near images."""
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
    all_samples = np.arange(len(best_sample))
    left, right = np.concatenate([all_samples, images]), np.concatenate([decisions.group, images[near.root]])
    decisions.group = connect(len(all_samples), left, right)
