"""Recipe parts: every field has a description, and a recipe with all parts is hashable."""

from __future__ import annotations

import pytest

from pairloom.registry import SIGNALS, SOURCES
from pairloom.schemas.recipes.balance import ClusterBalance, EntryBalance
from pairloom.schemas.recipes.curate import (
    CurateRecipe,
    FetchRecipe,
    ImageRecipe,
    IngestRecipe,
    ReshardRecipe,
    ScoreRule,
    SelectRecipe,
)
from pairloom.schemas.recipes.dedupe import (
    DecontaminateRecipe,
    DedupeRecipe,
    PerceptualRecipe,
    PlaceholderRecipe,
    PreferRecipe,
    SemanticRecipe,
)
from pairloom.schemas.recipes.load import StrictModel, parse_recipe
from pairloom.schemas.recipes.signals import Signal
from pairloom.schemas.recipes.source import SourceRecipe

PARTS: list[type[StrictModel]] = [
    CurateRecipe, IngestRecipe, ImageRecipe, FetchRecipe, SelectRecipe, ScoreRule, ReshardRecipe, EntryBalance,
    ClusterBalance, DedupeRecipe, PerceptualRecipe, SemanticRecipe, PreferRecipe, PlaceholderRecipe,
    DecontaminateRecipe, Signal, SourceRecipe,
]  # fmt: skip
ALL_PARTS = {
    "root": "out",
    "source": {
        "kind": "url_table",
        "path": ["a.csv", "b.csv"],
        "caption_column": ["alt", "title"],
        "keep_columns": ["licence", "boxes"],
        "blur_boxes_column": "boxes",
    },
    "ingest": {"image": {"size": 128}, "fetch": {"disallowed_directives": ["noai"]}},
    "signals": [
        {"kind": "captions"},
        {"kind": "phash256"},
        {"kind": "quality"},
        {"kind": "caption_duplicates"},
        {"kind": "clip", "name": "b32", "model": "model"},
        {"kind": "clip", "name": "folded", "models": ["one", "two"]},
        {"kind": "clusters", "name": "tree", "features": "b32", "num_clusters": [100, 10]},
        {"kind": "feature_head", "name": "aesthetic", "features": "b32", "head": "head.safetensors"},
        {"kind": "image_classifier", "name": "nsfw", "model": "model", "label": "nsfw"},
        {"kind": "word_list", "name": "words", "entries": "entries.txt"},
        {"kind": "table", "name": "mine", "path": ["scores.parquet"], "columns": ["score"]},
    ],
    "dedupe": {
        "hashes": "phash256",
        "perceptual": {"bits": 256, "max_distance": 10},
        "placeholders": {},
        "semantic": {"features": "b32"},
        "decontaminate": [{"path": "evaluation", "semantic": 0.9}],
        "against": ["old/raw/main"],
        "prefer": {"column": "licence", "order": ["cc0"]},
    },
    "select": {"languages": ["en"], "scores": [{"signal": "b32", "top_fraction": 0.3}, {"signal": "mine", "min": 1}]},
    "balance": {"kind": "clusters", "clusters": "tree", "num_samples": 10},
    "reshard": {"shuffle": "global"},
}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_has_a_description(part: type[StrictModel]) -> None:
    assert part.__doc__
    without = [name for name, field in part.model_fields.items() if not field.description]
    assert not without, "write a docstring below the field"


@pytest.mark.parametrize(
    "kind", [*map(SIGNALS.get, SIGNALS), *map(SOURCES.get, SOURCES)], ids=lambda kind: kind.__name__
)
def test_every_field_of_a_built_in_kind_has_a_description(kind: type[StrictModel]) -> None:
    assert kind.__doc__
    own = {name: field for name, field in kind.model_fields.items() if name not in ("kind", "name")}
    assert not [name for name, field in own.items() if not field.description]


def test_a_recipe_with_all_parts_is_hashable() -> None:
    recipe = parse_recipe(ALL_PARTS, CurateRecipe, "test")
    assert hash(recipe) == hash(parse_recipe(ALL_PARTS, CurateRecipe, "test"))
    assert {recipe: "value"}[recipe] == "value"
    hash(parse_recipe({**ALL_PARTS, "balance": {"kind": "metaclip"}}, CurateRecipe, "test"))
