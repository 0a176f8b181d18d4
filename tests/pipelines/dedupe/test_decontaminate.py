"""Decontamination by hashes and by features, with the counts in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import SiglipModel

from pairloom.pipelines.algorithms.kmeans import normalised
from pairloom.pipelines.dedupe.criteria.contamination import has_near
from pairloom.pipelines.dedupe.criteria.feature_contamination import nearest_in_set
from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.inspect.inspect import explain
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import chained_features, decisions_of, hashes_with_neighbours, recipe_for, uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs
from tests.support.tiny_models import write_siglip


@pytest.mark.parametrize("radius", [0, 1, 3, 6, 11])
def test_lookup_in_an_evaluation_set_equals_brute_force(radius: int) -> None:
    hashes = hashes_with_neighbours("random")
    others, asked = hashes[::7].copy(), hashes[1::2].copy()
    expected = (np.bitwise_count(asked[:, None] ^ others[None, :]) <= radius).any(axis=1)
    assert has_near(asked, others, radius).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["images", "tars", "raw"])
def test_images_of_an_evaluation_set_leave(tmp_path: Path, ray_session: None, kind: str) -> None:
    """Recompressed and resized copies of evaluation images are dropped with all captions; other images are kept."""
    pairs = photographs(6)
    pairs += [
        Pair(encoded(photograph(40), quality=70), f"copy {number}", f"http://e.test/{number}") for number in (1, 2)
    ]
    pairs.append(Pair(encoded(photograph(41, 192, 144)), "large copy", "http://e.test/3"))
    evaluation = [
        Pair(encoded(photograph(seed)), f"evaluation {seed}", f"http://e.test/{seed}") for seed in (40, 41, 42)
    ]
    folder = tmp_path / "evaluation"
    path = build_raw(folder, evaluation)
    if kind == "images":
        path = str(folder / "images")
        Path(path).mkdir()
        for number, pair in enumerate(evaluation):
            assert isinstance(pair.image, bytes)
            (Path(path) / f"{number}.jpg").write_bytes(pair.image)
    elif kind == "tars":
        path = f"{path}/0000/*.tar"
    result = dedupe(recipe_for(tmp_path, decontaminate=[{"path": path}]), build_raw(tmp_path, pairs), {})
    reasons = [decisions_of(result)[uid_of(pair)]["drop_reason"] for pair in pairs]
    assert reasons == [None] * 6 + ["contaminated"] * 3
    assert decisions_of(result)[uid_of(pairs[-1])]["duplicate_of"] is None
    report: Any = load_manifest(result).details["contamination"]
    assert (report[0]["num_evaluation_images"], report[0]["num_evaluation_images_hit"]) == (3, 2)
    assert (report[0]["num_images_hit"], report[0]["num_samples_hit"]) == (2, 3)


@pytest.mark.parametrize("num_images", [60, 5000])
def test_nearest_features_equal_brute_force(num_images: int) -> None:
    features = chained_features(300)
    evaluation = np.concatenate([features[::3], chained_features(num_images)])
    place, cosine, counts = nearest_in_set(features.astype(np.float16), evaluation, 0.9)
    exact = normalised(features.astype(np.float16)) @ evaluation.T
    best = exact.max(axis=1)
    assert (place >= 0).tolist() == (best > 0.9).tolist()
    assert np.allclose(cosine[place >= 0], best[place >= 0], atol=1e-6)
    assert np.allclose(exact[np.arange(300), place][place >= 0], best[place >= 0], atol=1e-6)
    assert [counts[one] for one in range(len(evaluation))] == (exact > 0.9).sum(axis=0).tolist()


def evaluation_of(root: Path, kind: str, evaluation: list[Pair]) -> str:
    """An evaluation set as a raw folder or as image files."""
    path = build_raw(root, evaluation, 2)
    if kind == "raw":
        return path
    (root / "images").mkdir()
    for number, pair in enumerate(evaluation):
        assert isinstance(pair.image, bytes)
        (root / "images" / f"{number}.jpg").write_bytes(pair.image)
    return str(root / "images")


def write_mirror_blind_model(out: Path) -> None:
    """A model with random weights whose features do not change when an image is mirrored."""
    model = SiglipModel.from_pretrained(write_siglip(out))
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        kernel = embeddings.patch_embedding.weight
        kernel.copy_(30 * (kernel + kernel.flip(-1)))
        embeddings.position_embedding.weight.zero_()
    model.save_pretrained(out)


@pytest.mark.parametrize("kind", ["images", "raw"])
@pytest.mark.slow
def test_features_find_duplicates_that_hashes_miss(tmp_path: Path, ray_session: None, kind: str) -> None:
    """A mirrored copy has another pHash, but equal features in this model."""
    write_mirror_blind_model(tmp_path / "model")
    mirrored = np.ascontiguousarray(photograph(40)[:, ::-1])
    evaluation = [Pair(encoded(photograph(seed)), f"held out {seed}", f"http://e.test/{seed}") for seed in (40, 41, 42)]
    pairs = [
        *photographs(4),
        Pair(encoded(mirrored), "mirrored", "http://a.test/m1.jpg"),
        Pair(encoded(mirrored), "mirrored, again", "http://a.test/m2.jpg"),
        Pair(encoded(photograph(41), quality=70), "near by its hash", "http://a.test/41.jpg"),
    ]
    path = evaluation_of(tmp_path / "evaluation", kind, evaluation)
    recipe = CurateRecipe.model_validate(
        {
            "root": str(tmp_path),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "clip", "name": "tiny", "model": str(tmp_path / "model")}],
            "dedupe": {"decontaminate": [{"path": path, "semantic": 0.95, "features": "tiny"}]},
        }
    )
    raw = build_raw(tmp_path, pairs, 3)
    folder = dedupe(recipe, raw, {"tiny": measure_signal(recipe, recipe.signals[0], raw, None)})
    rows = [decisions_of(folder)[uid_of(pair)] for pair in pairs]
    assert [row["drop_reason"] for row in rows] == [None] * 4 + ["contaminated"] * 3
    assert [row["distance"] is None for row in rows[4:]] == [True, True, False]
    assert all(row["similarity"] > 0.95 for row in rows[4:])
    names = [uid_of(pair) if kind == "raw" else f"{number}.jpg" for number, pair in enumerate(evaluation)]
    assert [row["evaluation_image"] for row in rows[4:]] == [f"{path}: {names[place]}" for place in (0, 0, 1)]
    told = explain(str(tmp_path), uid_of(pairs[4]))
    assert told["verdict"] == f"dropped by dedupe/default: contaminated (near {path}: {names[0]})"
    hit = {row.pop("evaluation_image"): row for row in pq.read_table(f"{folder}/contamination.parquet").to_pylist()}
    assert hit == {
        names[0]: {"path": path, "num_samples_by_phash": 0, "num_samples_by_features": 2},
        names[1]: {"path": path, "num_samples_by_phash": 1, "num_samples_by_features": 1},
    }
    report: Any = load_manifest(folder).details["contamination"]
    assert (report[0]["num_evaluation_images_hit"], report[0]["num_images_hit"], report[0]["num_samples_hit"]) == (
        2,
        2,
        3,
    )


def test_features_of_evaluation_sets_are_named(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"root": "x", "source": {"kind": "folder", "path": "x"}}
    settings["signals"] = [{"kind": "clip", "name": "tiny", "model": "m"}]
    settings["dedupe"] = {"semantic": {"features": "tiny"}, "decontaminate": [{"path": "e", "semantic": 0.95}]}
    recipe = CurateRecipe.model_validate(settings).dedupe
    assert recipe.features_of(recipe.decontaminate[0]) == "tiny"
    for wrong in (
        {"decontaminate": [{"path": "e", "semantic": 0.95}]},
        {"decontaminate": [{"path": "e", "semantic": 0.95, "features": "other"}]},
        {"decontaminate": [{"path": "e", "perceptual": None}]},
    ):
        with pytest.raises(ValueError, match=r"features|perceptual"):
            CurateRecipe.model_validate(settings | {"dedupe": wrong})
