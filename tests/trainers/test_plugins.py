"""Evaluations and exporters of other packages work by their kind, in recipes and on the command line."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from pairloom.cluster.cli import cli
from pairloom.registry import EVALUATIONS, EXPORTERS
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.evaluation import EvaluationRecipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.evaluate.run import check_data
from tests.support.tiny_runs import tiny_recipe


class CountFiles(EvaluationRecipe):
    """Counts the files of a model."""

    kind: Literal["count-files"]
    suffix: str = ""

    def run(self, model_folder: str) -> dict[str, Any]:
        return {"num_files": len(list(Path(model_folder).glob(f"*{self.suffix}")))}


def export_nothing(run_dir: str, out: str, step: int | None, averaged: bool) -> str:
    Path(out).mkdir()
    Path(out, "note.txt").write_text(f"{run_dir} {step} {averaged}")
    return out


@pytest.fixture(autouse=True)
def _plugins() -> None:
    EVALUATIONS.register("count-files", CountFiles)
    EXPORTERS.register("nothing", export_nothing)


def test_an_evaluation_takes_its_own_fields(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "b.bin").touch()
    arguments = ["evaluate", str(tmp_path), "suffix=.json", "--kind", "count-files", "--data", "x", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout) == {
        "data": "x", "kind": "count-files", "model": str(tmp_path), "num_files": 1, "suffix": ".json"
    }  # fmt: skip


def test_an_evaluation_stands_in_a_recipe() -> None:
    recipe = tiny_recipe("run", "data", "evaluate=[{kind: count-files, data: /nowhere, suffix: .bin}]")
    assert recipe.model_dump(mode="json")["evaluate"] == [{"kind": "count-files", "data": "/nowhere", "suffix": ".bin"}]
    with pytest.raises(InputError, match="count-files: /nowhere is not there"):
        check_data(recipe.evaluate)


def test_an_exporter_is_a_format(tmp_path: Path) -> None:
    arguments = ["export", "run", "--format", "nothing", "--out", str(tmp_path / "out"), "--step", "3", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "out")}
    assert (tmp_path / "out" / "note.txt").read_text() == "run 3 False"
    with pytest.raises(InputError, match="no export format other; there are hf, nothing, onnx, open-clip"):
        CliRunner().invoke(cli, ["export", "run", "--format", "other", "--out", "x"], catch_exceptions=False)


def test_train_recipes_can_be_hashed() -> None:
    overrides = ("model.overrides={vision: {num_hidden_layers: 1}}", "evaluate=[{kind: retrieval, data: x}]")
    one, two = (tiny_recipe("run", "data", *overrides) for _ in range(2))
    assert hash(one) == hash(two)
    assert TrainRecipe.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(TypeError, match="a recipe cannot change"):
        one.model.overrides["image_size"] = 32
