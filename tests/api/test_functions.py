"""Functions of the public API: recipes, errors, algorithms. Only public names are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pairloom

CURATE = {"root": "out", "source": {"kind": "folder", "path": "images"}}


def test_recipes_from_names_files_and_mappings(tmp_path: Path) -> None:
    built_in = pairloom.load_recipe("curate-urls", {"root": "here", "source.path": "urls.csv"})
    assert isinstance(built_in, pairloom.CurateRecipe)
    assert built_in.root == "here"
    assert isinstance(pairloom.load_recipe("siglip-vit-b-16"), pairloom.TrainRecipe)
    (tmp_path / "mine.yaml").write_text("root: out\nsource: {kind: folder, path: images}\n")
    assert pairloom.load_recipe(tmp_path / "mine.yaml", ["select.min_side=3"]).select.min_side == 3  # type: ignore[union-attr]
    changed = pairloom.load_recipe(CURATE, {"source.keep_columns": ["a", "b"], "select.languages": None})
    assert changed.source.keep_columns == ("a", "b")  # type: ignore[union-attr]
    assert CURATE == {"root": "out", "source": {"kind": "folder", "path": "images"}}


def test_mistakes_are_one_line_and_typed() -> None:
    for source, message in (
        ("no-such-recipe", "no such recipe"),
        ({**CURATE, "selct": {}}, "unknown key selct; did you mean select"),
        ({**CURATE, "source": {"kind": "nothing", "path": "x"}}, "'folder', 'parquet_images', 'url_table'"),
    ):
        with pytest.raises(pairloom.RecipeError, match=message) as caught:
            pairloom.load_recipe(source)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, pairloom.UserError)
    with pytest.raises(pairloom.RecipeError, match="this is a curate recipe; give a train recipe"):
        pairloom.train(CURATE)


def test_importing_pairloom_loads_no_framework() -> None:
    code = "import sys, pairloom; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "ray", "deepspeed", "transformers", "pyarrow", "duckdb"} & set(loaded)


def test_every_public_name_is_there_and_documented() -> None:
    assert set(pairloom.__all__) == set(dir(pairloom))
    for name in pairloom.__all__:
        assert getattr(pairloom, name).__doc__, name


def test_hamming_pairs_are_all_pairs() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, 300, np.uint64)
    hashes[100:200] = hashes[:100] ^ (np.uint64(1) << draw.integers(0, 64, 100).astype(np.uint64))
    hashes[200:220] = hashes[:20]
    left, right, distance = pairloom.algorithms.hamming_pairs(hashes, 3)
    all_distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = [tuple(pair) for pair in np.argwhere(np.triu(all_distances <= 3, 1)).tolist()]
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected
    assert distance.tolist() == [int(all_distances[pair]) for pair in expected]


def test_kmeans_finds_directions_and_minhash_near_captions() -> None:
    draw = np.random.default_rng(1)
    centres = np.eye(4, 16)
    rows = np.repeat(centres, 50, axis=0) + 0.05 * draw.standard_normal((200, 16))
    centroids = pairloom.algorithms.kmeans(rows, 4, seed=3)
    clusters = pairloom.algorithms.nearest_centroids(rows, centroids)
    assert all(len(set(clusters[start : start + 50].tolist())) == 1 for start in range(0, 200, 50))
    captions = ["a dog runs over the green grass", "A dog runs over the  green grass!", "a red car in the city"]
    signatures = pairloom.algorithms.minhash(captions)
    near, far = pairloom.algorithms.minhash_similarity(signatures[[0, 0]], signatures[[1, 2]])
    assert near > 0.8 > 0.2 > far
    roots = pairloom.algorithms.connected_components(5, [3, 1], [4, 3])
    assert roots.tolist() == [0, 1, 2, 1, 1]
