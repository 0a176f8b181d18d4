"""A small curated root, made and read by the public API alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pairloom

NUM_IMAGES = 40


def write_source(folder: Path) -> None:
    """Images with captions of 1 to 8 words; one file is no image."""
    folder.mkdir()
    draw = np.random.default_rng(3)
    for index in range(NUM_IMAGES):
        rough = draw.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(rough).resize((80, 64), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(" ".join(["word"] * (1 + index % 8)) + f" {index}")
    (folder / "999.png").write_bytes(b"no image")
    (folder / "999.txt").write_text("broken")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A curated root: `selections/default` keeps captions of at least 4 words, `selections/strict` of at least 7."""
    folder = tmp_path_factory.mktemp("api")
    write_source(folder / "source")
    recipe = pairloom.load_recipe(
        {
            "root": str(folder / "root"),
            "source": {"kind": "folder", "path": str(folder / "source")},
            "ingest": {"samples_per_shard": 12},
            "signals": [{"kind": "captions"}, {"kind": "quality"}],
            "select": {"min_words": 4},
        }
    )
    pairloom.curate(recipe)
    pairloom.curate(recipe, {"select.min_words": 7, "select.name": "strict"}, only="select")
    return folder / "root"
