"""Quality, image classifiers and feature heads on real images, and score rules that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import ViTForImageClassification, ViTImageProcessorPil

from pairloom.pipelines.curate import curate
from pairloom.pipelines.signals.classifier import Classifier, classifier_fingerprint
from pairloom.pipelines.signals.clip import features_url
from pairloom.pipelines.signals.feature_head import Head
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.signals.quality import measure_image
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.raw_builder import Pair, build_raw, photographs
from tests.support.signal_builder import recipe_for, write_classifier
from tests.support.tiny_models import write_clip


def rows_of(folder: str) -> list[dict[str, Any]]:
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    return [row for table in tables for row in table.to_pylist()]


def test_blur_lowers_sharpness_and_flat_images_have_none(shared_data: Callable[[str], Path]) -> None:
    for path in sorted((shared_data("flickr8k") / "images").glob("*.jpg"))[:8]:
        pixels = decode_rgb(path.read_bytes())
        sharpness, entropy, flatness = measure_image(pixels)
        blurred = measure_image(cv2.GaussianBlur(pixels, (0, 0), 3))
        assert blurred[0] < sharpness / 4
        assert 4 < entropy <= 8
        assert 0 <= flatness < 0.9 < measure_image(np.full_like(pixels, 200))[2]
    assert measure_image(np.full((64, 64, 3), 7, np.uint8)) == (0.0, 0.0, 1.0)


def test_size_changes_little(shared_data: Callable[[str], Path]) -> None:
    path = sorted((shared_data("dedup_triples")).rglob("*.jpg"))[0]
    pixels = decode_rgb(path.read_bytes())
    larger = cv2.resize(pixels, None, fx=3, fy=3, interpolation=cv2.INTER_LANCZOS4)
    assert measure_image(larger) == pytest.approx(measure_image(pixels), rel=0.5, abs=0.1)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 9), (3000, 2)])
def test_odd_sizes_are_measured(size: tuple[int, int]) -> None:
    assert measure_image(np.zeros((*size, 3), np.uint8)) == (0.0, 0.0, 1.0)


def test_quality_decides(tmp_path: Path, ray_session: None) -> None:
    pairs = [*photographs(5), Pair(DropReason.TIMEOUT, "never came", "http://a.test/gone.jpg")]
    raw = build_raw(tmp_path, pairs, samples_per_shard=4)
    recipe = recipe_for(tmp_path, {"kind": "quality"})
    rows = rows_of(measure_signal(recipe, recipe.signals[0], raw, None))
    assert [row["sharpness"] is None for row in rows] == [False] * 5 + [True]
    assert [row["uid"] for row in rows] == [row["uid"] for row in rows_of(raw)]


# ---- classifiers


@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_are_those_of_plain_transformers(num_labels: int, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, num_labels)
    ours = Classifier(str(folder), "kind 0", "cpu")
    images = [decode_rgb(pair.image) for pair in photographs(3) if isinstance(pair.image, bytes)]
    model = ViTForImageClassification.from_pretrained(folder).eval()
    processor = ViTImageProcessorPil.from_pretrained(folder)
    inputs = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = (logits.sigmoid() if num_labels == 1 else logits.softmax(-1))[:, 0].numpy()
    np.testing.assert_allclose(ours.scores([ours.inputs(image) for image in images]), expected, atol=1e-5)


def test_an_unknown_label_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no label nsfw; its labels are kind 0, kind 1"):
        Classifier(str(write_classifier(tmp_path)), "nsfw", "cpu")


def test_onnx_file_equals_its_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    folder = write_classifier(tmp_path / "model")
    model = ViTForImageClassification.from_pretrained(folder).eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (torch.zeros(2, 3, 32, 32),), str(folder / "model.onnx"), input_names=["pixel_values"],
        dynamic_shapes={"pixel_values": {0: batch}}, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    ours, plain = (Classifier(str(path), "kind 1", "cpu") for path in (folder / "model.onnx", folder))
    inputs = [plain.inputs(decode_rgb(pair.image)) for pair in photographs(5) if isinstance(pair.image, bytes)]
    np.testing.assert_allclose(ours.scores(inputs), plain.scores(inputs), atol=1e-5)
    before = classifier_fingerprint(str(folder / "model.onnx"))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert classifier_fingerprint(str(folder / "model.onnx")) != before
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="an ONNX classifier needs config"):
        classifier_fingerprint(str(folder / "model.onnx"))


# ---- heads


def write_onnx_head(path: Path, weight: np.ndarray[Any, Any], batch: str | int = "batch") -> Path:
    """One linear layer [outputs, features], then tanh."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    weights = onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T.astype(np.float32)), "w")
    ends = (
        [helper.make_tensor_value_info(name, kind, [batch, width])]
        for name, width in zip("xy", weight.T.shape, strict=True)
    )
    graph = helper.make_graph(nodes, "head", *ends, [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_heads(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(700, 16)).astype(np.float32)
    one, two = draw.normal(size=(1, 16)), draw.normal(size=(2, 16))
    score = Head(str(write_onnx_head(tmp_path / "one.onnx", one)))(features)
    np.testing.assert_allclose(score, np.tanh(features @ one[0]), atol=1e-5)
    logits = np.tanh(features @ two.T)
    share = Head(str(write_onnx_head(tmp_path / "two.onnx", two)))(features)
    np.testing.assert_allclose(share, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), atol=1e-5)
    with pytest.raises(InputError, match="takes 16 features, the input has 8"):
        Head(str(tmp_path / "one.onnx"))(features[:, :8])
    with pytest.raises(InputError, match="whose first axis is of any size, not x \\[1, 16\\]"):
        Head(str(write_onnx_head(tmp_path / "fixed.onnx", one, batch=1)))
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"bad\.onnx: cannot be loaded"):
        Head(str(tmp_path / "bad.onnx"))


def test_a_score_does_not_depend_on_how_many_are_computed(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(700, 512)).astype(np.float32)
    save_file({"0.weight": draw.normal(size=(64, 512)).astype(np.float32),
               "1.weight": draw.normal(size=(1, 64)).astype(np.float32)}, tmp_path / "head.safetensors")  # fmt: skip
    for path in (tmp_path / "head.safetensors", write_onnx_head(tmp_path / "head.onnx", draw.normal(size=(1, 512)))):
        head = Head(str(path))
        whole = head(features)
        for start, stop in ((0, 1), (3, 700), (699, 700), (100, 103)):
            assert (head(features[start:stop]) == whole[start:stop]).all()


def test_heads_are_linear_layers(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    layers = {"layers.0": draw.normal(size=(8, 16)), "layers.2": draw.normal(size=(4, 8)), "layers.10": None}
    layers["layers.10"] = draw.normal(size=(1, 4))
    tensors = {f"{name}.weight": weight.astype(np.float32) for name, weight in layers.items() if weight is not None}
    tensors["layers.0.bias"] = draw.normal(size=8).astype(np.float32)
    features = draw.normal(size=(5, 16)).astype(np.float32)
    hidden = features @ tensors["layers.0.weight"].T + tensors["layers.0.bias"]
    for activation in ("none", "relu"):
        save_file(tensors, tmp_path / "head.safetensors", {"activation": activation})
        rectify = (lambda values: np.maximum(values, 0)) if activation == "relu" else (lambda values: values)
        expected = rectify(rectify(hidden) @ tensors["layers.2.weight"].T) @ tensors["layers.10.weight"].T
        found = Head(str(tmp_path / "head.safetensors"))(features)
        np.testing.assert_allclose(found, expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not a head at all", None])
def test_a_head_that_cannot_be_read_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"head\.safetensors"):
        Head(str(path))


@pytest.mark.slow
def test_the_walk_with_every_kind_of_score(tmp_path: Path, ray_session: None) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for place, pair in enumerate(photographs(12)):
        assert isinstance(pair.image, bytes)
        (images / f"{place:02d}.jpg").write_bytes(pair.image)
        (images / f"{place:02d}.txt").write_text(f"a picture of blobs, number {place}")
    model = write_clip(tmp_path / "clip")
    width = 24
    save_file({"0.weight": np.eye(1, width, dtype=np.float32)}, tmp_path / "head.safetensors")
    settings = {
        "root": str(tmp_path / "data"),
        "source": {"kind": "folder", "path": str(images)},
        "ingest": {"samples_per_shard": 5},
        "signals": [
            {"kind": "feature_head", "name": "beauty", "features": "clip", "head": str(tmp_path / "head.safetensors")},
            {"kind": "quality"},
            {"kind": "image_classifier", "name": "nsfw", "model": str(write_classifier(tmp_path / "model")),
             "label": "kind 1"},
            {"kind": "clip", "name": "clip", "model": str(model)},
        ],
        "select": {"scores": [{"signal": "quality", "column": "flatness", "max": 0.99},
                              {"signal": "nsfw", "min": 0, "max": 1},
                              {"signal": "beauty", "top_fraction": 0.5}]},
    }  # fmt: skip
    folders = {
        step["name"]: step["folder"] for step in curate(CurateRecipe.model_validate(settings), lambda: None)["steps"]
    }
    rows = rows_of(folders["select"])
    shards = [shard.name for shard in load_manifest(folders["signals clip"]).shards]
    first = np.concatenate([np.load(features_url(folders["signals clip"], name, "image_features")) for name in shards])
    np.testing.assert_allclose([row["beauty.score"] for row in rows], first[:, 0], rtol=1e-3)
    kept = [row["beauty.score"] for row in rows if row["kept"]]
    assert 6 <= len(kept) <= 7
    assert min(kept) >= max(row["beauty.score"] for row in rows if not row["kept"])
