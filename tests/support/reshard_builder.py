"""A raw data set with a selection, ready to be resharded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs

GONE = Pair(DropReason.TIMEOUT, "never came", "http://a.test/gone.jpg")


def recipe_for(root: Path, **settings: Any) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": "unused"},
            "reshard": {"samples_per_shard": 6, "raw_shards_per_group": 2, **settings},
        }
    )


def files_of(folder: str) -> dict[str, str]:
    """Every file below a folder with the sha256 of its content."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def make_pairs() -> list[Pair]:
    """Twenty images, one of them twice, one PNG, one missing."""
    pairs = [*photographs(20), GONE]
    pairs.append(Pair(pairs[0].image, pairs[0].caption, "http://b.test/0.jpg"))
    pairs.append(Pair(encoded(photograph(50), "PNG"), "ein Bild – with “signs”", "http://c.test/50.png"))
    return pairs


def prepare(root: Path, recipe: CurateRecipe) -> tuple[str, str]:
    """Raw folder and selection of the pairs above."""
    raw = build_raw(root, make_pairs(), samples_per_shard=4)
    return raw, select(recipe, inputs_of(recipe, raw, {}, dedupe(recipe, raw, {})))
