"""The balance part of a curate recipe: how what is common is thinned out, after all other rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class EntryBalance(StrictModel):
    """MetaCLIP's balancing over a list of entries that captions match."""

    kind: Literal["metaclip"]
    name: Name = "default"
    entries: str | None = None  # a text file, one a line; null: words and pairs of words of the captions themselves
    min_count: Annotated[int, Field(gt=0)] = 20  # of a word or pair, to become an entry; without a file
    min_information: float = 3.0  # bits of pointwise mutual information, for a pair to become an entry; without a file
    t: Annotated[int, Field(gt=0)] = 20_000  # matches up to which an entry is kept whole; 20k for 400M pairs
    seed: Seed = 0

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "entries": "counts by content",
        "t": "part of the selection's hash",
        "seed": "part of the selection's hash",
    }


class ClusterBalance(StrictModel):
    """Equal draws from each cluster, level by level, until `num_samples` are drawn."""

    kind: Literal["clusters"]
    clusters: Name  # a clusters signal
    num_samples: Annotated[int, Field(gt=0)]
    seed: Seed = 0


BalanceRecipe = Annotated[EntryBalance | ClusterBalance, Field(discriminator="kind")]
