"""Evaluation: zero-shot, retrieval, visual questions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pairloom.schemas.conversation import Conversation, Turn
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest
from pairloom.schemas.data_set.shard import ShardWriter
from pairloom.schemas.data_set.tables import CURATED, make_uid, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.evaluate.labelled import load_classification
from pairloom.trainers.evaluate.load import DualEncoder, ImageSource, LlavaReader
from pairloom.trainers.evaluate.retrieval import load_captioned_images, recalls
from pairloom.trainers.evaluate.run import evaluate
from pairloom.trainers.evaluate.vqa import Question, answer, load_questions, matches, wrong_images
from pairloom.trainers.evaluate.zero_shot import class_features
from pairloom.trainers.task import TrainSample
from pairloom.trainers.tasks.llava import build_llava_task
from tests.support.shared_data import SHARED_DATA
from tests.support.tiny_models import write_clip, write_siglip, write_tokenizer

DATA = SHARED_DATA
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs real data: set PAIRLOOM_SHARED")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_siglip(tmp_path_factory.mktemp("siglip")))


def write_colours(folder: Path) -> None:
    """A folder of class folders, four images each."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.clip(np.array(colour) + draw.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (folder / "classes.json").write_text(json.dumps({name: f"{name} paint" for name in COLOURS}))


def test_recalls_equal_a_worked_example() -> None:
    """Three images, the first with two captions; image 2 and its caption lie apart."""
    images = functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), dim=-1)
    texts = functional.normalize(torch.tensor([[1.0, 0.1, 0], [0.2, 1, 0], [0, 1, 0.1], [1, 0.9, 0]]), dim=-1)
    found = recalls(images, texts, torch.tensor([0, 0, 1, 2]))
    # image 0: caption 0 first. image 1: its caption is nearest. image 2: two foreign captions are as near or nearer.
    assert found["image_to_text_recall_at_1"] == pytest.approx(2 / 3)
    # caption 0 -> image 0; caption 1 -> image 1, wrong; caption 2 right; caption 3 -> image 0, wrong.
    assert found["text_to_image_recall_at_1"] == pytest.approx(2 / 4)
    assert found["text_to_image_recall_at_5"] == 1.0


def test_equal_features_recall_nothing() -> None:
    same = functional.normalize(torch.ones(20, 8), dim=-1)
    found = recalls(same, same, torch.arange(20))
    assert {value for name, value in found.items() if "recall" in name} == {0.0}
    assert found["text_to_image_mean_rank"] == found["image_to_text_median_rank"] == 20


def test_class_features_are_normalised_means(siglip: str) -> None:
    encoder = DualEncoder(siglip)
    found = class_features(encoder, ["dog", "church"], ["a photo of a {}", "{}"])
    apart = encoder.text_features(["a photo of a church", "church"])
    torch.testing.assert_close(found[1], functional.normalize(apart.mean(dim=0), dim=-1))


@pytest.mark.parametrize("write", [write_siglip, write_clip])
def test_features_are_those_of_the_model(tmp_path: Path, write: Any) -> None:
    """Batching and threads change nothing: features equal the model's own embeddings of one image and text."""
    encoder = DualEncoder(str(write(tmp_path)))
    write_colours(tmp_path / "data")
    sources = [ImageSource(str(path)) for path in sorted((tmp_path / "data").rglob("*.png"))]
    alone = torch.cat([encoder.image_features([source]) for source in sources])
    torch.testing.assert_close(encoder.image_features(sources), alone, rtol=1e-4, atol=1e-5)
    texts = ["a dog", "two golf balls and a parachute"]
    torch.testing.assert_close(
        encoder.text_features(texts), torch.cat([encoder.text_features([text]) for text in texts]), rtol=1e-4, atol=1e-5
    )


def test_zero_shot_folder_and_table_agree(siglip: str, tmp_path: Path) -> None:
    write_colours(tmp_path)
    rows = [{"image": f"{name}/{index}.png", "class": name} for name in COLOURS for index in range(4)]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    by_folder = evaluate(siglip, "zero-shot", str(tmp_path))
    by_table = evaluate(siglip, "zero-shot", str(tmp_path / "test.jsonl"))
    keys = ("num_images", "num_classes", "top1", "top5", "mean_per_class")
    assert [by_folder[key] for key in keys] == [by_table[key] for key in keys]
    assert by_folder["num_images"] == 16
    assert by_folder["top5"] == 1.0  # of four classes
    json.dumps(by_folder)


def test_templates_of_the_classes_file(tmp_path: Path) -> None:
    write_colours(tmp_path)
    nested = {"classes": {name: name for name in COLOURS}, "templates": ["{}!", "the {}"]}
    (tmp_path / "classes.json").write_text(json.dumps(nested))
    assert list(load_classification(str(tmp_path)).templates) == ["{}!", "the {}"]
    (tmp_path / "classes.json").write_text(json.dumps({**nested, "templates": ["no place"]}))
    with pytest.raises(InputError, match="template"):
        load_classification(str(tmp_path))
    (tmp_path / "classes.json").unlink()
    assert list(load_classification(str(tmp_path)).class_names) == sorted(COLOURS)


def test_retrieval_takes_the_test_split(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "captions": ["one", "two"], "split": "test"},
        {"image": "b.jpg", "captions": ["three"], "split": "train"},
        {"image": "c.jpg", "caption": "four", "split": "test"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pairs = load_captioned_images(str(tmp_path))
    assert list(pairs.captions) == ["one", "two", "four"]
    assert pairs.owners.tolist() == [0, 0, 1]
    assert pairs.images[1].url == str(tmp_path / "c.jpg")


def write_curated(folder: Path) -> None:
    """A curated data set of three samples; the first two show the same image."""
    colours = ("red", "red", "blue")
    (folder / "0000").mkdir(parents=True)
    rows = []
    with ShardWriter(str(folder / "0000/0000000.tar")) as writer:
        for index, colour in enumerate(colours):
            path = folder / f"{colour}.png"
            Image.new("RGB", (40, 40), COLOURS[colour]).save(path)
            data = path.read_bytes()
            places = writer.add(f"{index:012d}", {"png": data, "txt": b"x", "json": b"{}"})
            rows.append({
                "uid": make_uid(None, f"caption {index}", "x"), "key": f"{index:012d}", "caption": f"caption {index}",
                "image_sha256": hashlib.sha256(data).hexdigest(), "weight": 1.0, "raw_shard": "r", "raw_row": index,
                "offset": places["png"].offset, "num_bytes": places["png"].num_bytes,
            })  # fmt: skip
    write_table(str(folder / "0000/0000000.parquet"), pa.Table.from_pylist(rows, schema=CURATED))
    save_manifest(str(folder), Manifest("test", "reshard", "0", [], [ShardEntry("0000/0000000", 3, 3, 1)]))
    set_latest(str(folder))


def test_retrieval_on_a_curated_data_set(siglip: str, tmp_path: Path) -> None:
    write_curated(tmp_path / "curated/test/01234567")
    found = evaluate(siglip, "retrieval", str(tmp_path / "curated/test"))
    assert (found["num_images"], found["num_captions"]) == (2, 3)
    assert found["image_to_text_recall_at_5"] == 1.0


def test_missing_images_stop_an_evaluation(siglip: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": "gone.jpg", "caption": "x"}))
    with pytest.raises(InputError, match=r"gone\.jpg"):
        evaluate(siglip, "retrieval", str(tmp_path))
    with pytest.raises(InputError, match="vqa"):
        evaluate(siglip, "vqa", str(tmp_path))
    with pytest.raises(InputError, match="no evaluation guess; there are linear-probe, retrieval"):
        evaluate(siglip, "guess", str(tmp_path))


def test_answers_are_compared_normalised() -> None:
    assert matches(" The Left-Side.", ["left side"])
    assert matches("yes", ["no", "Yes!"])
    assert not matches("left", ["left side"])


def test_wrong_images_are_a_derangement() -> None:
    questions = [Question(f"{index % 7}.jpg", "?", ("x",)) for index in range(30)]
    wrong = wrong_images(questions)
    assert set(wrong) == set(wrong.values())
    assert all(image != other for image, other in wrong.items())
    assert wrong == wrong_images(questions[::-1])


def test_questions_of_conversations(tmp_path: Path) -> None:
    turns = [("human", "<image>\nwhat?"), ("gpt", "a dog"), ("human", "where?"), ("gpt", "left")]
    record = {"id": 1, "image": "x.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "talk.json").write_text(json.dumps([record]))
    found = load_questions(str(tmp_path / "talk.json"))
    assert [(question.text, question.answers) for question in found] == [("what?", ("a dog",)), ("where?", ("left",))]


@pytest.fixture(scope="module")
def colour_llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A LLaVA that has learned to name four colours, and questions about them."""
    root = tmp_path_factory.mktemp("colours")
    write_siglip(root / "siglip")
    write_tokenizer(root / "tokenizer")
    write_colours(root / "data")
    settings: dict[str, Any] = {
        "run": {"dir": "unused", "total_samples": 8}, "task": {"kind": "llava", "mode": "instruct"},
        "model": {"llava": {"vision": str(root / "siglip"), "language": "llama-test-tiny"}},
        "data": {"train": [{"path": "unused"}]}, "batch": {"global_batch_size": 8},
        "optimizer": {"learning_rate": 3e-3},
    }  # fmt: skip
    task = build_llava_task(parse_recipe(settings, TrainRecipe, where="test"), str(root / "tokenizer"))
    samples, rows = [], []
    for name in COLOURS:
        for index in range(4):
            pixels = task.preprocess.resize(np.asarray(Image.open(root / f"data/{name}/{index}.png")))
            turns = (Turn("user", "<image>\nWhat colour?"), Turn("assistant", name))
            samples.append(TrainSample(f"{name}{index}", pixels, "", Conversation(name, "x", turns)))
            kind = "warm" if name in ("red", "yellow") else "cold"
            rows.append({"image": f"{name}/{index}.png", "question": "What colour?", "answer": name, "kind": kind})
    (root / "data/qa.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    batch = task.collate(samples)
    groups = [{"params": group.parameters, "lr": group.learning_rate} for group in task.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(60):
        loss, _ = task.loss(task.model, batch, task.counts(batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    task.save_model(str(root / "llava"), task.model.state_dict())
    return str(root / "llava"), str(root / "data")


def test_vqa_tells_seeing_from_guessing(colour_llava: tuple[str, str]) -> None:
    model, data = colour_llava
    real = evaluate(model, "vqa", data)
    assert real["accuracy"] == 1.0
    assert (real["accuracy_warm"], real["accuracy_cold"]) == (1.0, 1.0)
    assert evaluate(model, "vqa", data, image_mode="none")["accuracy"] <= 0.5
    assert evaluate(model, "vqa", data, image_mode="wrong")["accuracy"] <= 0.5


def test_batches_do_not_change_answers(colour_llava: tuple[str, str]) -> None:
    """Left padding: a short prompt beside a long one gives what it gives alone."""
    reader, questions = LlavaReader(colour_llava[0]), load_questions(colour_llava[1])[::5]
    longer = [Question(q.image, "Look at this picture, please. What colour is it?", q.answers) for q in questions]
    together = answer(reader, questions + longer, "real")
    alone = [answer(reader, [question], "real")[0] for question in questions + longer]
    assert together == alone


@needs_data
def test_real_questions_and_photographs(siglip: str, colour_llava: tuple[str, str]) -> None:
    found = evaluate(colour_llava[0], "vqa", str(DATA / "vqa_rad/qa.jsonl"))
    assert found["num_questions"] == 734
    assert {"accuracy_OPEN", "accuracy_CLOSED"} <= set(found)
    assert evaluate(siglip, "zero-shot", str(DATA / "imagenette_val"))["num_images"] == 600
