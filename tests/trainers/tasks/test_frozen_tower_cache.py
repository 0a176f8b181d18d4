"""What a locked tower gives is computed once for each image, whatever the number of its captions."""

from pathlib import Path

import torch

from pairloom.schemas.recipes.train import DataSource
from pairloom.trainers.data.dataset import open_pairs
from pairloom.trainers.tasks.frozen_tower_cache import FrozenTowerCache
from tests.support.curated_builder import build_curated, colour_pairs

WIDTH = 3


def test_every_input_is_computed_once_and_kept(tmp_path: Path) -> None:
    computed: list[str] = []

    def lookup(cache: FrozenTowerCache, names: list[str]) -> list[float]:
        def compute(missing: list[int]) -> torch.Tensor:
            computed.extend(names[index] for index in missing)
            return torch.tensor([[float(ord(names[index][-1]))] * WIDTH for index in missing])

        return cache.lookup(names, compute)[:, 0].tolist()

    path = tmp_path / "locked" / "vision-0.bin"
    cache = FrozenTowerCache(path, WIDTH)
    assert lookup(cache, ["a", "b", "a"]) == [97, 98, 97]
    assert lookup(cache, ["c", "b"]) == [99, 98]
    path.write_bytes(path.read_bytes()[:-1])  # killed while it wrote the last one
    assert lookup(FrozenTowerCache(path, WIDTH), ["a", "b", "c"]) == [97, 98, 99]
    assert sorted(computed) == ["a", "b", "c", "c"]


def test_captions_of_one_image_share_its_identity(tmp_path: Path) -> None:
    (one, first), (other, second) = colour_pairs(2)
    data = open_pairs(DataSource(path=build_curated(tmp_path, [(one, first), (one, "again"), (other, second)])))
    ids = [data.read(0, row).image_id for row in range(3)]
    assert ids[0] is not None
    assert ids[0] == ids[1] != ids[2]
