"""Decisions over all samples: exact duplicates, captions of one image, near-duplicates, and the groups they form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.dedupe.components import Indices, connect
from pipelines.dedupe.decontaminate import find_hits
from pipelines.dedupe.evaluation_set import read_evaluation_set
from pipelines.dedupe.exact import best_of, best_of_captions, equal_images
from pipelines.dedupe.near import Near, RawShards, near_duplicates, thumbnails_of
from pipelines.dedupe.placeholders import placeholder_images
from pipelines.dedupe.semantic import FeatureShards, semantic_duplicates
from pipelines.dedupe.slim import Slim, uid_texts
from schemas.curate_recipe import DedupeRecipe
from schemas.drop_reason import DropReason

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
NUM_LARGEST = 10  # groups that the manifest names
NUM_NAMED = 100  # evaluation images that the manifest names
GIANT_GROUP = 1000  # samples; so large a component joins what only a chain links


@dataclass
class Decisions:
    """One entry a sample with an image, in the order of the uids."""

    reason: npt.NDArray[np.int8]  # place in REASONS
    kept_instead: Indices  # the sample itself where it is kept
    distance: npt.NDArray[np.int32]
    group: Indices  # smallest sample of its component

    def counts(self, chosen: npt.NDArray[np.bool_]) -> Counter[str]:
        """Chosen samples by drop reason."""
        numbers = np.bincount(self.reason[chosen], minlength=len(REASONS))
        return Counter({reason.value: int(numbers[code]) for code, reason in enumerate(REASONS) if reason})


def decide(
    slim: Slim, settings: DedupeRecipe, raw: RawShards, features: FeatureShards | None, num_own_shards: int
) -> tuple[Decisions, dict[str, object]]:
    """Decisions over all samples, and what the manifest tells about them. Other shards than our own come first."""
    is_own = slim.shard < num_own_shards
    ranks = keep_ranks(slim, settings, is_own)
    image_of = equal_images(slim)  # an image is named by its first sample
    best_sample = best_of(image_of, ranks)  # of the image of each sample
    decisions = _decide_exact(slim, settings, ranks, image_of, best_sample)
    figures = _figures(slim, "most_repeated_images", image_of)  # placeholders show here
    is_image = (best_sample == np.arange(slim.num_rows)) & slim.has_phash
    if settings.placeholders is not None:
        is_placeholder = np.zeros(slim.num_rows, bool)
        is_placeholder[placeholder_images(slim, image_of, settings.placeholders, raw)] = True
        samples = np.flatnonzero(is_placeholder[image_of])
        decisions.reason[samples], decisions.kept_instead[samples] = PLACEHOLDER, samples
    if settings.decontaminate:
        figures["contamination"] = _drop_contaminated(decisions, slim, settings, raw, best_sample)
    is_image &= (decisions.reason != CONTAMINATED) & (decisions.reason != PLACEHOLDER)
    if settings.perceptual is not None:
        images = np.flatnonzero(is_image)
        images = images[np.argsort(ranks[images])]
        near = near_duplicates(slim, images, settings.perceptual, raw)
        _drop_near(decisions, images, near, best_sample)
        figures["num_flat_candidates"] = int(near.is_flat.sum())
        figures["num_flat_duplicates"] = int((near.is_flat & (near.kept_instead >= 0)).sum())
    if settings.semantic is not None and features is not None:
        kept = np.flatnonzero((best_sample == np.arange(slim.num_rows)) & (decisions.reason == 0) & is_own)
        kept = kept[np.argsort(ranks[kept])]
        instead = semantic_duplicates(slim, kept, settings.semantic, features)
        _drop_semantic(decisions, kept, instead, best_sample)
    figures |= _figures(slim, "largest_groups", decisions.group)
    figures["num_images"] = len(np.unique(image_of))
    return decisions, figures


def keep_ranks(slim: Slim, settings: DedupeRecipe, is_own: npt.NDArray[np.bool_]) -> Indices:
    """Place of each sample in the keep order: 0 is kept before all others. Samples are in the order of their uids.

    Samples of earlier data sets (`against`) come before our own: they are there already.
    """
    smallest_uid = np.arange(slim.num_rows)
    score = np.where(np.isnan(slim.score), -np.inf, slim.score)
    orders = {
        "largest": (smallest_uid, -slim.area),
        "highest_score": (smallest_uid, -slim.area, -score),
        "smallest_uid": (smallest_uid,),
    }
    ranks = np.empty(slim.num_rows, np.int64)
    ranks[np.lexsort((*orders[settings.keep], slim.preference, is_own))] = np.arange(slim.num_rows)
    return ranks


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
    return Decisions(reason, kept_instead.copy(), np.zeros(slim.num_rows, np.int32), image_of)


def _drop_contaminated(
    decisions: Decisions, slim: Slim, settings: DedupeRecipe, raw: RawShards, best_sample: Indices
) -> list[dict[str, object]]:
    """Drop all samples of the images that an evaluation set holds; returns what was hit, set by set."""
    images = np.flatnonzero((best_sample == np.arange(slim.num_rows)) & slim.has_phash)
    report = []
    for rule in settings.decontaminate:
        evaluation = read_evaluation_set(rule.path)
        hits = find_hits(slim.phash[images], lambda places: thumbnails_of(slim, images[places], raw), evaluation, rule)
        is_hit, distance = np.zeros(slim.num_rows, bool), np.zeros(slim.num_rows, np.int32)
        is_hit[images[hits.image]], distance[images[hits.image]] = True, hits.distance
        samples = np.flatnonzero(is_hit[best_sample])
        decisions.reason[samples], decisions.kept_instead[samples] = CONTAMINATED, samples
        decisions.distance[samples] = distance[best_sample[samples]]
        names = sorted({evaluation.name[place] for place in hits.evaluation.tolist()})
        report.append(
            {
                "path": rule.path,
                "num_evaluation_images": len(evaluation.name),
                "num_evaluation_images_hit": len(names),
                "num_images_hit": len(hits.image),
                "num_samples_hit": len(samples),
                "evaluation_images_hit": names[:NUM_NAMED],
            }
        )
    return report


def _drop_near(decisions: Decisions, images: Indices, near: Near, best_sample: Indices) -> None:
    """Drop all samples of the images that have a kept one near; join the groups of all that are near."""
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


def _drop_semantic(decisions: Decisions, images: Indices, instead: Indices, best_sample: Indices) -> None:
    """Drop the samples of images whose features agree with those of a kept one; who pointed at them still does."""
    kept_image = np.arange(len(best_sample))
    dropped = instead >= 0
    kept_image[images[dropped]] = images[instead[dropped]]
    samples = np.flatnonzero((kept_image[best_sample] != best_sample) & (decisions.reason == 0))
    decisions.kept_instead[samples] = kept_image[best_sample[samples]]
    decisions.reason[samples] = SEMANTIC
    everyone = np.arange(len(best_sample))
    left = np.concatenate([everyone, images[dropped]])
    right = np.concatenate([decisions.group, images[instead[dropped]]])
    decisions.group = connect(len(everyone), left, right)


def _figures(slim: Slim, name: str, groups: Indices) -> dict[str, object]:
    """How many groups of several samples there are, how many giant ones, and the largest by name."""
    sizes = np.bincount(groups, minlength=1)
    largest = np.lexsort((np.arange(len(sizes)), -sizes))[:NUM_LARGEST]
    largest = largest[sizes[largest] > 1]
    listed = zip(uid_texts(slim.uid[largest]), sizes[largest].tolist(), strict=True)
    return {
        f"num_{name.rpartition('_')[2]}_of_several": int((sizes > 1).sum()),
        f"num_{name.rpartition('_')[2]}_giant": int((sizes >= GIANT_GROUP).sum()),
        name: [{"uid": uid, "num_samples": size} for uid, size in listed],
    }
