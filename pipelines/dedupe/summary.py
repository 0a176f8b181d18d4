"""The summary of a dedupe for its manifest, summed over parts."""

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

NUM_LARGEST = 10  # groups named in the manifest
NUM_NAMED = 100  # evaluation images named in the manifest
GIANT_GROUP = 1000  # samples; a larger component is probably a chain

CONTAMINATION = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # path of the evaluation set in the recipe
        pa.field("evaluation_image", pa.string(), nullable=False),
        pa.field("num_samples_by_phash", pa.int64(), nullable=False),
        pa.field("num_samples_by_features", pa.int64(), nullable=False),
    ]
)
"""`contamination.parquet`: number of near samples per evaluation image, counting every near pair."""


@dataclass(frozen=True)
class GroupSizes:
    """Groups of several samples: their number, the number of giant ones, and the largest ones."""

    num_of_several: int = 0
    num_giant: int = 0
    largest: tuple[tuple[str, int], ...] = ()  # (smallest uid, number of samples)

    @staticmethod
    def of(uids: npt.NDArray[np.uint64], sizes: Indices) -> GroupSizes:
        """From the size of each group and its uid [groups, 2]."""
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

    def as_details(self, name: str) -> dict[str, object]:
        """The entries of the manifest's details."""
        kind = name.rpartition("_")[2]
        return {
            f"num_{kind}_of_several": self.num_of_several,
            f"num_{kind}_giant": self.num_giant,
            name: [{"uid": uid, "num_samples": size} for uid, size in self.largest],
        }


@dataclass(frozen=True)
class Contamination:
    """Samples near the images of one evaluation set."""

    by_phash: Counter[int] = field(default_factory=Counter)  # number of samples by index of the evaluation image
    by_features: Counter[int] = field(default_factory=Counter)
    num_images: int = 0  # images of the data set
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
        """Indices of the evaluation images with near samples."""
        return sorted(self.by_phash.keys() | self.by_features.keys())


@dataclass
class Summary:
    """Counts of one part, or the sum over several parts."""

    contamination: list[Contamination]  # one per set
    num_images: int = 0
    images: GroupSizes = field(default_factory=GroupSizes)  # samples per image
    groups: GroupSizes = field(default_factory=GroupSizes)
    num_flat_images: int = 0  # among the compared images
    num_flat_duplicates: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            [one + more for one, more in zip(self.contamination, other.contamination, strict=True)],
            self.num_images + other.num_images,
            self.images + other.images,
            self.groups + other.groups,
            self.num_flat_images + other.num_flat_images,
            self.num_flat_duplicates + other.num_flat_duplicates,
        )

    def as_details(self, settings: DedupeRecipe, sets: list[EvaluationImages]) -> dict[str, object]:
        """The entries of the manifest's details."""
        details: dict[str, object] = {"num_images": self.num_images}
        details |= self.images.as_details("most_repeated_images")  # placeholders are among them
        details |= self.groups.as_details("largest_groups")
        if settings.perceptual is not None:
            details["num_flat_images"] = self.num_flat_images
            details["num_flat_duplicates"] = self.num_flat_duplicates
        if settings.decontaminate:
            details["contamination"] = [
                {
                    "path": rule.path,
                    "num_evaluation_images": len(evaluation.name),
                    "num_evaluation_images_hit": len(hit.images),
                    "num_images_hit": hit.num_images,
                    "num_samples_hit": hit.num_samples,
                    "evaluation_images_hit": sorted(evaluation.name[index] for index in hit.images)[:NUM_NAMED],
                }
                for rule, evaluation, hit in zip(settings.decontaminate, sets, self.contamination, strict=True)
            ]
        return details

    def contamination_table(self, settings: DedupeRecipe, sets: list[EvaluationImages]) -> pa.Table:
        """Every evaluation image with near samples, and their number by each criterion."""
        rows = [
            (rule.path, evaluation.name[index], hit.by_phash[index], hit.by_features[index])
            for rule, evaluation, hit in zip(settings.decontaminate, sets, self.contamination, strict=True)
            for index in hit.images
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(CONTAMINATION)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, CONTAMINATION, strict=True)]
        return pa.table(arrays, schema=CONTAMINATION)
