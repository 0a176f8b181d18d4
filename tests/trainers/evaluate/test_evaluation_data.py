"""Evaluations read what others publish: folders, tables, WebDataset tars and parquet give the same figures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pairloom.cluster.cli import cli
from pairloom.registry import EVALUATIONS
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.trainers.evaluate.class_names import ClassFiles
from pairloom.trainers.evaluate.labelled import load_classification
from pairloom.trainers.evaluate.recipes import BuiltInEvaluation
from pairloom.trainers.evaluate.retrieval import load_captioned_images
from pairloom.trainers.evaluate.run import evaluate
from tests.support.tiny_models import write_siglip
from tests.trainers.evaluate.test_evaluate import COLOURS, write_colours

NAMES = [f"{name} paint" for name in COLOURS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sixteen images as a folder, tars and parquet, and a model."""
    root = tmp_path_factory.mktemp("evaluation")
    write_siglip(root / "model")
    write_colours(root / "folder")
    files = [root / "folder" / name / f"{index}.png" for name in COLOURS for index in range(4)]
    write_tars(root / "tars", files)
    write_parquet(root / "parquet", files)
    for name in ("tars", "parquet"):
        (root / name / "classnames.txt").write_text("\n".join(NAMES))
    return root


def write_tars(folder: Path, files: list[Path]) -> None:
    """Two tars as CLIP benchmark writes them: a picture, its class as a number, captions one a line."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, path in list(enumerate(files))[shard::2]:
                label = str(list(COLOURS).index(path.parent.name))
                texts = f"{path.parent.name} {number}\nsomething {path.parent.name}\n"
                for suffix, data in (("png", path.read_bytes()), ("cls", label.encode()), ("txt", texts.encode())):
                    info = tarfile.TarInfo(f"s{number:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_parquet(folder: Path, files: list[Path], **metadata: str) -> None:
    """As Hugging Face's `datasets` writes pictures, in several row groups."""
    folder.mkdir()
    rows = [
        {
            "image": {"bytes": path.read_bytes(), "path": path.name},
            "label": list(COLOURS).index(path.parent.name),
            "captions": [f"{path.parent.name} {number}", f"something {path.parent.name}"],
        }
        for number, path in enumerate(files)
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "test-00000.parquet", row_group_size=5)


@pytest.mark.parametrize("form", ["tars", "tars/*.tar", "tars/{0..1}.tar", "parquet", "parquet/test-00000.parquet"])
def test_zero_shot_is_the_same_in_every_form(root: Path, form: str) -> None:
    found, expected = (evaluate(str(root / "model"), "zero-shot", str(root / part)) for part in (form, "folder"))
    same = ("num_images", "num_classes", "top1", "top5", "mean_per_class")
    assert [found[name] for name in same] == [expected[name] for name in same]


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_retrieval_with_two_captions_an_image(root: Path, form: str) -> None:
    pairs = load_captioned_images(str(root / form))
    assert len(pairs.images) == 16
    assert pairs.owners.tolist() == [index for index in range(16) for _ in range(2)]
    assert pairs.captions[:2] == ["red 0", "something red"]
    found = evaluate(str(root / "model"), "retrieval", str(root / form))
    assert (found["num_images"], found["num_captions"]) == (16, 32)
    assert 0 <= found["text_to_image_recall_at_1"] <= found["text_to_image_recall_at_10"] <= 1


def test_names_and_templates_from_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crimson\nlime\nnavy\ngold\n")
    (tmp_path / "sentences.txt").write_text("a {c} wall\n{} all over\n")
    files = ClassFiles(str(tmp_path / "names.txt"), str(tmp_path / "sentences.txt"))
    found = load_classification(str(root / "tars"), files)
    assert list(found.class_names) == ["crimson", "lime", "navy", "gold"]
    assert list(found.templates) == ["a {} wall", "{} all over"]
    (tmp_path / "short.json").write_text(json.dumps(["crimson", "lime"]))
    with pytest.raises(InputError, match="'2' is not among the 2 names"):
        load_classification(str(root / "tars"), ClassFiles(str(tmp_path / "short.json")))
    with pytest.raises(InputError, match="no such file"):
        load_classification(str(root / "tars"), ClassFiles(templates=str(tmp_path / "gone.txt")))


def test_names_that_the_parquet_brings(root: Path, tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    files = sorted((root / "folder").rglob("*.png"))
    write_parquet(tmp_path / "own", files, huggingface=json.dumps({"info": {"features": features}}))
    assert list(load_classification(str(tmp_path / "own")).class_names) == NAMES


def test_linear_probe_by_the_command_line(root: Path) -> None:
    """Random towers see colours well enough for a linear classifier."""
    arguments = ["evaluate", str(root / "model"), "--kind", "linear-probe", "--data", str(root / "folder")]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert "train_data" in str(done.exception)
    # five images a class: every fifth chooses the penalty
    lines = [
        json.dumps({"image": str(path.relative_to(root)), "class": path.parent.name})
        for path in [*(root / "folder").rglob("*.png"), *(root / "folder").rglob("0.png")]
    ]
    (root / "train.jsonl").write_text("\n".join(lines))
    done = CliRunner().invoke(
        cli,
        [
            *arguments,
            "--train-data",
            str(root / "train.jsonl"),
            "--classes",
            str(root / "folder/classes.json"),
            "--json",
        ],
        catch_exceptions=False,
    )
    found = json.loads(done.stdout)
    assert (found["num_train_images"], found["num_images"], found["num_classes"]) == (20, 16, 4)
    assert found["top1"] == 1.0
    assert found["l2_penalty"] > 0


def test_recipes_of_evaluations() -> None:
    def parse(kind: str, **settings: Any) -> BuiltInEvaluation:
        part: type[BuiltInEvaluation] = EVALUATIONS.get(kind)
        return parse_recipe({"kind": kind, "data": "x", **settings}, part, "test")

    assert parse(kind="linear-probe", train_data="y", classes="z").train_data == "y"
    for wrong in ({"kind": "linear-probe"}, {"kind": "retrieval", "train_data": "y"}, {"kind": "vqa", "classes": "z"}):
        with pytest.raises(RecipeError, match="evaluate"):
            parse(**wrong)


def test_empty_evaluation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no images in folders of classes"):
        load_classification(str(tmp_path))
    with pytest.raises(InputError, match=r"nor pairs\.jsonl, tars or parquet"):
        load_captioned_images(str(tmp_path))
    pq.write_table(pa.table({"label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column of images"):
        load_classification(str(tmp_path))
