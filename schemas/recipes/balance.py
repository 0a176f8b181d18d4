"""The balance part of a curate recipe: keep fewer samples of frequent content, after all other rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.signals import Name

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class EntryBalance(StrictModel):
    """MetaCLIP's balancing (arXiv 2309.16671) over a list of entries that captions match."""

    kind: Literal["metaclip"]
    """`metaclip`: draw by entries."""
    name: Name = "default"
    """Name of the result: `<root>/balance/<name>`."""
    entries: str | None = None
    """A text file with one entry per line; null: words and pairs of words of the captions themselves."""
    min_count: Annotated[int, Field(gt=0)] = 20
    """Smallest number of occurrences of a word or pair that becomes an entry. Only without `entries`."""
    min_information: float = 3.0
    """Smallest pointwise mutual information of a pair that becomes an entry, bits. Only without `entries`."""
    t: Annotated[int, Field(gt=0)] = 20_000
    """Matches up to which all samples of an entry are kept; MetaCLIP uses 20,000 for 400 million pairs."""
    seed: Seed = 0
    """Seed of the draw."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "entries": "its content is hashed",
        "t": "part of the selection's hash",
        "seed": "part of the selection's hash",
    }


class ClusterBalance(StrictModel):
    """Equal draws from each cluster, level by level, until `num_samples` are drawn (arXiv 2405.15613)."""

    kind: Literal["clusters"]
    """`clusters`: draw by clusters of images."""
    clusters: Name
    """Name of a clusters signal, or of a table signal with a column `cluster`."""
    num_samples: Annotated[int, Field(gt=0)]
    """Number of samples to draw."""
    seed: Seed = 0
    """Seed of the draw."""


BalanceRecipe = Annotated[EntryBalance | ClusterBalance, Field(discriminator="kind")]
