"""What the manifest tells about a dedupe, summed over the parts that decided."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairloom.pipelines.algorithms.union_find import Indices
from pairloom.pipelines.dedupe.criteria.evaluation_set import EvaluationImages
from pairloom.pipelines.dedupe.sample_records import uid_texts
from pairloom.schemas.recipes.dedupe import DedupeRecipe

NUM_LARGEST = 10  # groups that the manifest names
NUM_NAMED = 100  # evaluation images that the manifest names
GIANT_GROUP = 1000  # samples; so large a component joins what only a chain links

CONTAMINATION = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # of the evaluation set, as the recipe has it
        pa.field("evaluation_image", pa.string(), nullable=False),
        pa.field("num_samples_by_phash", pa.int64(), nullable=False),
        pa.field("num_samples_by_features", pa.int64(), nullable=False),
    ]
)
"""`contamination.parquet`: which evaluation image hit how many samples, every near pair counted."""


@dataclass(frozen=True)
class GroupSizes:
    """Groups of several samples: how many, how many giant ones, and the largest by name."""

    num_of_several: int = 0
    num_giant: int = 0
    largest: tuple[tuple[str, int], ...] = ()  # uid of the smallest sample, samples

    @staticmethod
    def of(uids: npt.NDArray[np.uint64], sizes: Indices) -> GroupSizes:
        """From the size of each group and the uid (halves) that names it."""
        several = np.flatnonzero(sizes > 1)
        order = np.lexsort((uids[several, 1], uids[several, 0], -sizes[several]))
        largest = several[order[:NUM_LARGEST]]
        listed = tuple(zip(uid_texts(uids[largest]), sizes[largest].tolist(), strict=True))
        return GroupSizes(len(several), int((sizes >= GIANT_GROUP).sum()), listed)

    def __add__(self, other: GroupSizes) -> GroupSizes:
        largest = sorted(self.largest + other.largest, key=lambda group: (-group[1], group[0]))
        return GroupSizes(
            self.num_of_several + other.num_of_several, self.num_giant + other.num_giant, tuple(largest[:NUM_LARGEST])
        )

    def told(self, name: str) -> dict[str, object]:
        """As the manifest has it."""
        kind = name.rpartition("_")[2]
        return {
            f"num_{kind}_of_several": self.num_of_several,
            f"num_{kind}_giant": self.num_giant,
            name: [{"uid": uid, "num_samples": size} for uid, size in self.largest],
        }


@dataclass(frozen=True)
class Contamination:
    """What one evaluation set hit."""

    by_phash: Counter[int] = field(default_factory=Counter)  # samples near each evaluation image, by its place
    by_features: Counter[int] = field(default_factory=Counter)
    num_images: int = 0  # of the data set
    num_samples: int = 0

    def __add__(self, other: Contamination) -> Contamination:
        return Contamination(
            self.by_phash + other.by_phash,
            self.by_features + other.by_features,
            self.num_images + other.num_images,
            self.num_samples + other.num_samples,
        )

    @property
    def images(self) -> list[int]:
        """The images of the evaluation set that were hit, by place."""
        return sorted(self.by_phash.keys() | self.by_features.keys())


@dataclass
class Figures:
    """Of one part, or the sum over several."""

    contamination: list[Contamination]  # set by set
    num_images: int = 0
    images: GroupSizes = field(default_factory=GroupSizes)  # samples of one image
    groups: GroupSizes = field(default_factory=GroupSizes)
    num_flat_images: int = 0  # of those that were compared
    num_flat_duplicates: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            [one + more for one, more in zip(self.contamination, other.contamination, strict=True)],
            self.num_images + other.num_images,
            self.images + other.images,
            self.groups + other.groups,
            self.num_flat_images + other.num_flat_images,
            self.num_flat_duplicates + other.num_flat_duplicates,
        )

    def told(self, settings: DedupeRecipe, sets: list[EvaluationImages]) -> dict[str, object]:
        """As the manifest has them."""
        told: dict[str, object] = {"num_images": self.num_images}
        told |= self.images.told("most_repeated_images")  # placeholders show here
        told |= self.groups.told("largest_groups")
        if settings.perceptual is not None:
            told["num_flat_images"] = self.num_flat_images
            told["num_flat_duplicates"] = self.num_flat_duplicates
        if settings.decontaminate:
            told["contamination"] = [
                {
                    "path": rule.path,
                    "num_evaluation_images": len(evaluation.name),
                    "num_evaluation_images_hit": len(hit.images),
                    "num_images_hit": hit.num_images,
                    "num_samples_hit": hit.num_samples,
                    "evaluation_images_hit": sorted(evaluation.name[place] for place in hit.images)[:NUM_NAMED],
                }
                for rule, evaluation, hit in zip(settings.decontaminate, sets, self.contamination, strict=True)
            ]
        return told

    def contamination_table(self, settings: DedupeRecipe, sets: list[EvaluationImages]) -> pa.Table:
        """Every evaluation image that was hit, with the samples that are near it by each criterion."""
        rows = [
            (rule.path, evaluation.name[place], hit.by_phash[place], hit.by_features[place])
            for rule, evaluation, hit in zip(settings.decontaminate, sets, self.contamination, strict=True)
            for place in hit.images
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(CONTAMINATION)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, CONTAMINATION, strict=True)]
        return pa.table(arrays, schema=CONTAMINATION)
