"""NaFlex pictures: the numbers of transformers' processor, the same in every worker; padding changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Siglip2ImageProcessorPil, SiglipModel
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.images.naflex import NaflexPreprocess, load_any_preprocess
from pairloom.schemas.images.preprocess import load_preprocess
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.trainers.data.dataset import open_dataset
from pairloom.trainers.data.loader import Loader, shares
from pairloom.trainers.data.resize import cut_into
from pairloom.trainers.data.sample_order import Order, Stream
from pairloom.trainers.losses.siglip import siglip_loss
from pairloom.trainers.models.naflex import naflex_inputs, naflex_preprocess, share_positions, to_naflex
from pairloom.trainers.models.presets import preset_config
from tests.support.curated_builder import build_curated
from tests.support.raw_builder import encoded, photograph
from tests.support.tiny_models import write_siglip

SIDES = [(640, 480), (31, 200), (64, 64), (333, 100), (1, 900), (16, 16), (5, 5), (1024, 1)]  # px, height and width
LENGTHS = (9, 16, 36)
BATCH, LANES, NUM_STEPS = 8, 4, 12


@pytest.mark.parametrize("num_patches", [1, 16, 128, 256, 576, 784, 1024])
def test_equals_transformers_processor(num_patches: int) -> None:
    ours = NaflexPreprocess(num_patches, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    processor = Siglip2ImageProcessorPil(**ours.processor_config())
    pictures = [photograph(seed, width, height) for seed, (height, width) in enumerate(SIDES)]
    theirs = processor([Image.fromarray(picture) for picture in pictures], return_tensors="np")
    mine = ours.model_inputs([ours.resize(picture) for picture in pictures])
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_allclose(array, theirs[name], atol=2e-6)


def test_naflex_grid_equals_transformers() -> None:
    draw = np.random.default_rng(0)
    for num_patches in (1, 7, 128, 256, 576, 784, 1024):
        preprocess = NaflexPreprocess(num_patches)
        for height, width in np.exp(draw.uniform(0, 9, (200, 2))).astype(int).tolist():
            rows, columns = preprocess.grid(height, width)
            size = get_image_size_for_max_num_patches(height, width, 16, num_patches)
            assert (rows * 16, columns * 16) == size
            assert 1 <= rows * columns <= num_patches


def test_training_sees_the_pixels_of_the_exported_processor_but_for_rounding() -> None:
    draw = np.random.default_rng(0)
    preprocess = NaflexPreprocess(49)
    for seed, (height, width) in enumerate(SIDES):
        noise = draw.integers(0, 256, (height, width, 3), np.uint8)
        for pixels in (noise, photograph(seed, width, height)):
            ours, theirs = (np.full(preprocess.out_shape, 7, np.uint8) for _ in range(2))
            assert cut_into(ours, pixels, preprocess) == preprocess.cut(preprocess.resize(pixels), theirs)
            difference = np.abs(ours.astype(int) - theirs)
            assert difference.max() <= 2
            assert difference.mean() < 0.25  # a scale may put many values half-way between two numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 pictures of many shapes."""
    pairs = [(encoded(photograph(seed, 20 + 9 * (seed % 13), 90 - 5 * (seed % 11))), f"p {seed}") for seed in range(40)]
    return build_curated(tmp_path_factory.mktemp("data"), pairs)


def loader(data: str, rank: int = 0, world_size: int = 1) -> Loader:
    dataset = open_dataset(DataSource(path=data))
    stream = Stream([Order(dataset.shard_sizes, 0, 0)], [1.0], LANES, BATCH)
    return Loader([dataset], stream, NaflexPreprocess(36), AugmentRecipe(), 0, rank, world_size, LENGTHS)


def test_ranks_workers_and_resuming_change_nothing(data: str) -> None:
    whole = [loader(data).share(step) for step in range(NUM_STEPS)]
    assert {share.pixels.shape[1] for share in whole} == set(LENGTHS)
    ranks = [list(shares(loader(data, rank, 2), 5, NUM_STEPS, num_workers=2)) for rank in range(2)]
    for expected, *parts in zip(whole[5:], *ranks, strict=True):
        assert expected.uids == [uid for part in parts for uid in part.uids]
        assert expected.grids == [grid for part in parts for grid in part.grids]
        assert torch.equal(expected.pixels, torch.cat([part.pixels for part in parts]))


def test_pixels_are_normalised_as_by_the_processor() -> None:
    preprocess = NaflexPreprocess(25, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    pictures = [preprocess.resize(photograph(1, 90, 60)), preprocess.resize(photograph(2, 30, 70))]
    rooms = np.empty((2, *preprocess.out_shape), np.uint8)
    grids = [preprocess.cut(picture, room) for picture, room in zip(pictures, rooms, strict=True)]
    found = naflex_inputs(torch.from_numpy(rooms), torch.tensor(grids), preprocess)
    for name, array in preprocess.model_inputs(pictures).items():
        assert np.array_equal(found[name].numpy(), array), name


def siglip() -> SiglipModel:
    torch.manual_seed(0)
    config = preset_config("siglip2-test-tiny", {}, 30, {"bos": 2, "eos": 1, "pad": 0})
    return SiglipModel(config).eval()


def test_a_siglip_gives_the_same_as_naflex_on_its_squares() -> None:
    square, pictures = siglip(), [photograph(seed, 64, 64) for seed in range(3)]
    preprocess = naflex_preprocess([16], 16)
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    inputs = {name: torch.from_numpy(array) for name, array in preprocess.model_inputs(pictures).items()}
    ids = torch.randint(3, 30, (3, 64))
    model = to_naflex(square).eval()
    with torch.no_grad():
        expected, found = square(input_ids=ids, pixel_values=values), model(input_ids=ids, **inputs)
    assert torch.allclose(found.image_embeds, expected.image_embeds, atol=1e-6)
    assert torch.equal(found.text_embeds, expected.text_embeds)
    assert torch.allclose(found.logits_per_image, expected.logits_per_image, atol=1e-5)


@pytest.mark.parametrize("more", [0, 1, 20])
def test_padding_changes_neither_losses_nor_gradients(more: int) -> None:
    """Each picture alone in just its own patches, against all together with padding behind them."""
    model = to_naflex(siglip())
    preprocess = NaflexPreprocess(36)
    pictures = [preprocess.resize(photograph(seed, 40 + 30 * seed, 90)) for seed in range(4)]
    ids = torch.randint(3, 30, (4, 64), generator=torch.Generator().manual_seed(0))
    numbers = [picture.shape[0] * picture.shape[1] // 256 for picture in pictures]
    assert len(set(numbers)) > 1
    alone = [features(model, [one], number) for one, number in zip(pictures, numbers, strict=True)]
    results = []
    for image in (torch.cat(alone), features(model, pictures, 36 + more)):
        model.zero_grad()
        text = torch.nn.functional.normalize(model.text_model(ids).pooler_output, dim=-1)
        loss = siglip_loss(image, text, torch.tensor([10.0]), torch.tensor([-10.0]))
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.vision_model.parameters() if p.grad is not None]))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*(grads for _, grads in results), strict=True))


def test_positions_are_resized_once_for_each_shape() -> None:
    plain, shared = to_naflex(siglip()).vision_model, to_naflex(siglip())
    share_positions(shared)
    preprocess = NaflexPreprocess(36)
    pictures = [preprocess.resize(photograph(seed, 40 + 60 * (seed % 2), 90)) for seed in range(4)]
    inputs = {name: torch.from_numpy(array) for name, array in preprocess.model_inputs(pictures).items()}
    outputs = [tower(**inputs).pooler_output for tower in (plain, shared.vision_model)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    tables = [tower.embeddings.position_embedding.weight.grad for tower in (plain, shared.vision_model)]
    assert torch.allclose(tables[0], tables[1], rtol=1e-4, atol=1e-6)


def features(model: Any, pictures: list[np.ndarray], num_patches: int) -> torch.Tensor:  # type: ignore[type-arg]
    arrays = NaflexPreprocess(num_patches).model_inputs(pictures)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return torch.nn.functional.normalize(model.vision_model(**inputs).pooler_output, dim=-1)


def test_folders_record_their_preprocessing(tmp_path: Path) -> None:
    square = write_siglip(tmp_path / "square")
    assert load_any_preprocess(str(square)) == load_preprocess(str(square))
    preprocess = replace(naflex_preprocess([128, 256], 16), mean=(0.1, 0.2, 0.3))
    Siglip2ImageProcessorPil(**preprocess.processor_config()).save_pretrained(tmp_path)
    assert load_any_preprocess(str(tmp_path)) == preprocess
    with pytest.raises(InputError, match="without a fixed size"):
        load_preprocess(str(tmp_path))
    with pytest.raises(RecipeError, match="patches of 16 px only"):
        naflex_preprocess([64], 32)
