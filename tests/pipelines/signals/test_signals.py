"""Signals: caption counts as in DataComp, features equal to plain transformers, out-of-fold scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, VisionTextDualEncoderModel, ViTConfig
from transformers import VisionTextDualEncoderConfig as DualConfig

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.signals.captions import measure_caption, split_words
from pairloom.pipelines.signals.clip import features_url
from pairloom.pipelines.signals.measure import measure_signal, signal_folder
from pairloom.pipelines.signals.models.clip import ClipModel
from pairloom.pipelines.signals.models.model_folder import check_held_out, model_fingerprint
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import fold_of, read_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.provenance_builder import write_provenance
from tests.support.raw_builder import Pair, build_raw, encoded, photograph, photographs
from tests.support.tiny_models import write_clip, write_siglip, write_tokenizer


def recipe_for(root: Path, *signals: dict[str, Any]) -> CurateRecipe:
    return CurateRecipe.model_validate(
        {"root": str(root), "source": {"kind": "folder", "path": "unused"}, "signals": list(signals)}
    )


def rows_of(folder: str) -> list[dict[str, Any]]:
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    return [row for table in tables for row in table.to_pylist()]


def features_of(folder: str, kind: str) -> np.ndarray[Any, Any]:
    shards = load_manifest(folder).shards
    return np.concatenate([np.load(features_url(folder, shard.name, kind)) for shard in shards])


# ---- captions


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("A brown dog runs through the grass\nwith a ball in its mouth.", "en"),
        ("Ein brauner Hund läuft mit einem Ball durch das Gras.", "de"),
        ("Un chien brun court dans l'herbe avec une balle.", "fr"),
        ("一只棕色的狗在草地上奔跑", "zh"),
    ],
)
def test_language(caption: str, language: str) -> None:
    num_words, num_chars, found, score, _, _ = measure_caption(caption)
    assert (num_words, num_chars, found) == (len(caption.split()), len(caption), language)
    assert score is not None
    assert 0.5 < score <= 1.0


@pytest.mark.parametrize("caption", ["", "\n\n", "12 345 !!", "\0"])
def test_captions_without_letters_have_no_language(caption: str) -> None:
    assert measure_caption(caption)[1:4] == (len(caption), None, None)


def test_words_are_cut_as_fasttext_does() -> None:
    assert split_words(" a  dog\tin\nNew\0York\u00a0City ") == ["a", "dog", "in", "New", "York\u00a0City"]


@pytest.mark.parametrize(
    ("caption", "non_word_share", "junk"),
    [
        ("A brown dog's ball, on the well-kept grass!", 0.0, 0),
        ("2 dogs & a cat", 2 / 5, 0),
        ("une vue de l'église d’Auvers", 0.0, 0),
        ("IMG_1234", 1.0, 1),
        ("holiday-042.jpeg", 1.0, 1),
        ("click here to enlarge", 0.0, 1),
        ("Image may contain: one person", 0.0, 1),
        (" logo ", 0.0, 1),
        ("the logo of a dairy", 0.0, 0),
        ("see www.example.com", 1 / 2, 1),
        ("", 1.0, 0),
    ],
)
def test_alt_text_junk_differs_from_captions(caption: str, non_word_share: float, junk: float) -> None:
    assert measure_caption(caption)[4:] == (pytest.approx(non_word_share), junk)


def test_caption_signals_have_the_rows_of_the_raw_table(tmp_path: Path, ray_session: None) -> None:
    pairs = photographs(5)
    pairs.insert(2, Pair(DropReason.TIMEOUT, "never came", "http://a.test/gone.jpg"))
    raw = build_raw(tmp_path, pairs, samples_per_shard=4)
    recipe = recipe_for(tmp_path, {"kind": "captions"})
    folder = measure_signal(recipe, recipe.signals[0], raw, None)
    rows = rows_of(folder)
    assert [row["uid"] for row in rows] == [row["uid"] for row in rows_of(raw)]
    assert [row["num_words"] for row in rows] == [6, 6, None, 6, 6, 6]
    assert rows[2]["language"] is None


def test_interrupted_signal_measures_missing_shards_only(tmp_path: Path, ray_session: None) -> None:
    raw = build_raw(tmp_path, photographs(6), samples_per_shard=2)
    recipe = recipe_for(tmp_path, {"kind": "captions"})
    folder = Path(measure_signal(recipe, recipe.signals[0], raw, None))
    (folder / "manifest.json").unlink()
    (folder / "0000/0000001.parquet").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("0000/*")}
    measure_signal(recipe, recipe.signals[0], raw, None)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("0000/*")}
    assert len(after) == 3
    assert {path: after[path] for path in before} == before


# ---- one model


def write_dual_encoder(out: Path) -> Path:
    """A VisionTextDualEncoder with random weights."""
    write_clip(out)
    tokenizer = write_tokenizer(out)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes)
    vision = ViTConfig(image_size=32, patch_size=8, **sizes)
    torch.manual_seed(1)
    VisionTextDualEncoderModel(DualConfig.from_vision_text_configs(vision, text, projection_dim=24)).save_pretrained(
        out
    )
    return out


WRITERS = {"clip": write_clip, "siglip": write_siglip, "dual": write_dual_encoder}


def plain_features(folder: Path, pixels: Pixels, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of one pair by transformers alone: image processor, tokenizer, model."""
    from transformers import AutoImageProcessor

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    values = AutoImageProcessor.from_pretrained(folder)(images=Image.fromarray(pixels), return_tensors="pt")
    if model.config.model_type == "siglip":
        tokens = tokenizer([caption], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        tokens = {"input_ids": tokens["input_ids"]}
    else:
        tokens = tokenizer([caption], truncation=True, max_length=16, return_tensors="pt")
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        image = model.get_image_features(pixel_values=values["pixel_values"]).pooler_output
        text = model.get_text_features(**tokens).pooler_output
    return torch.nn.functional.normalize(image, dim=-1)[0], torch.nn.functional.normalize(text, dim=-1)[0]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_features_are_those_of_plain_transformers(kind: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path)
    model = ClipModel(str(folder), "cpu")
    pixels = [photograph(seed, 96, 72) for seed in range(3)]
    captions = ["a red circle", "two golf balls and a parachute on the left of a blue square above it", "x"]
    images = model.image_features([model.image_inputs(one) for one in pixels])
    texts = model.text_features(model.text_inputs(captions))
    for row in range(3):
        image, text = plain_features(folder, pixels[row], captions[row])
        np.testing.assert_allclose(images[row], image.numpy(), atol=2e-5)
        np.testing.assert_allclose(texts[row], text.numpy(), atol=2e-5)


def test_scores_and_features_of_a_raw_folder(tmp_path: Path, ray_session: None) -> None:
    pairs = photographs(7)
    pairs.insert(3, Pair(DropReason.TIMEOUT, "never came", "http://a.test/gone.jpg"))
    raw = build_raw(tmp_path, pairs, samples_per_shard=4)
    model_folder = write_siglip(tmp_path / "model")
    recipe = recipe_for(tmp_path, {"kind": "clip", "name": "tiny", "model": str(model_folder), "batch_size": 2})
    folder = measure_signal(recipe, recipe.signals[0], raw, None)
    scores = [row["clip_score"] for row in rows_of(folder)]
    images, texts = features_of(folder, "image_features"), features_of(folder, "text_features")
    assert images.dtype == np.float16
    assert images.shape == (8, 32)
    assert scores[3] is None
    assert not images[3].any()
    cosines = (images.astype(np.float32) * texts.astype(np.float32)).sum(axis=1)
    kept = [row for row in range(8) if row != 3]
    np.testing.assert_allclose([scores[row] for row in kept], cosines[kept], atol=2e-3)
    image, text = plain_features(model_folder, photograph(0), pairs[0].caption)
    assert scores[0] == pytest.approx(float(image @ text), abs=0.02)  # the JPEG lies between


def test_a_shard_without_any_image_gives_empty_columns(tmp_path: Path, ray_session: None) -> None:
    gone = [Pair(DropReason.TIMEOUT, f"gone {number}", f"http://a.test/g{number}") for number in range(2)]
    raw = build_raw(tmp_path, [*photographs(2), *gone], samples_per_shard=2)
    recipe = recipe_for(tmp_path, {"kind": "clip", "name": "tiny", "model": str(write_siglip(tmp_path / "model"))})
    folder = measure_signal(recipe, recipe.signals[0], raw, None)
    assert [row["clip_score"] is None for row in rows_of(folder)] == [False, False, True, True]
    assert features_of(folder, "image_features").shape == (4, 32)


# ---- what names the folder


def test_fingerprint_covers_weights_and_not_the_notes_beside_them(tmp_path: Path) -> None:
    folder = write_siglip(tmp_path / "model")
    before = model_fingerprint(str(folder))
    (folder / "receipt.json").write_text("{}")
    (folder / "README.md").write_text("notes")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert model_fingerprint(str(copy)) == before
    change_weights(copy)
    assert model_fingerprint(str(copy)) != before
    with pytest.raises(InputError, match="not a Hugging Face model folder"):
        model_fingerprint(str(tmp_path))


def test_the_path_of_a_model_does_not_name_the_folder(tmp_path: Path) -> None:
    raw = build_raw(tmp_path, photographs(1))
    first = write_siglip(tmp_path / "model")
    second = shutil.copytree(first, tmp_path / "elsewhere")
    folders = []
    for model in (first, second):
        recipe = recipe_for(tmp_path, {"kind": "clip", "name": "tiny", "model": str(model)})
        folders.append(signal_folder(recipe, recipe.signals[0], raw, None).url)
    assert folders[0] == folders[1]


# ---- out of fold


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in sorted(weights):
        weights[name] = weights[name] + 0.02 * torch.randn(weights[name].shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_each_model_scores_the_fold_it_was_not_trained_on(tmp_path: Path, ray_session: None) -> None:
    pairs = photographs(12)
    pairs += [Pair(encoded(photograph(seed), quality=60), f"copy {seed}", f"http://b.test/{seed}") for seed in range(6)]
    raw = build_raw(tmp_path, pairs, samples_per_shard=5)
    models = [write_siglip(tmp_path / "f0"), write_siglip(tmp_path / "f1")]
    change_weights(models[1])
    for fold, model in enumerate(models):
        write_provenance(model, [fold, 2])
    singles = [{"kind": "clip", "name": f"m{fold}", "model": str(model)} for fold, model in enumerate(models)]
    folded = {"kind": "clip", "name": "folded", "models": [str(model) for model in models]}
    recipe = recipe_for(tmp_path, *singles, folded)
    groups = dedupe(recipe, raw, {})
    with pytest.raises(InputError, match="needs dedupe"):
        measure_signal(recipe, recipe.signals[2], raw, None)
    by_model = [rows_of(measure_signal(recipe, signal, raw, None)) for signal in recipe.signals[:2]]
    rows = rows_of(measure_signal(recipe, recipe.signals[2], raw, groups))
    folds = [fold_of(row["duplicate_group"], 2) for row in rows_of(groups)]
    assert set(folds) == {0, 1}
    assert [row["fold"] for row in rows] == folds
    for place, fold in enumerate(folds):
        assert rows[place]["clip_score"] == pytest.approx(by_model[fold][place]["clip_score"], abs=1e-5)
    assert [row["fold"] for row in rows[12:]] == [row["fold"] for row in rows[:6]]  # a copy falls where its twin does


def test_models_that_saw_their_fold_are_refused(tmp_path: Path) -> None:
    folders = [str(tmp_path / f"f{fold}") for fold in range(2)]
    for fold, folder in enumerate(folders):
        write_provenance(Path(folder), [fold, 2])
    check_held_out(folders)
    with pytest.raises(InputError, match=r"hold_out_fold=\[0,2\]"):
        check_held_out(folders[::-1])
    with pytest.raises(InputError, match="scores fold 0 of 3"):
        check_held_out([*folders, folders[0]])
    with pytest.raises(InputError, match="no provenance"):
        check_held_out([str(tmp_path), folders[1]])
    write_provenance(Path(folders[0]), [0, 2], parent=[1, 2])
    with pytest.raises(InputError, match="a parent model"):
        check_held_out(folders)
