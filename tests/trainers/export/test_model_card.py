"""The card of every export: what it says is what the run recorded, and the code on it runs where pairloom is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pairloom.cluster.cli import cli
from pairloom.schemas.errors import InputError
from pairloom.trainers.export import onnx_towers
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import NUM_PAIRS, tiny_data, tiny_recipe, train_in_ranks
from tests.trainers.evaluate.test_evaluate import write_colours
from tests.trainers.export.test_export import write_run

pytestmark = pytest.mark.slow

HAS_ONNX = all(find_spec(name) for name in onnx_towers.PACKAGES)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx: onnx, onnxruntime and onnxscript")
BLOCK = "import sys\nsys.modules.update(dict.fromkeys(('schemas', 'trainers', 'pipelines', 'cluster')))\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP and a CLIP that were trained for six steps, one with evaluations."""
    root = tmp_path_factory.mktemp("cards")
    data = tiny_data(root / "data")
    write_colours(root / "colours")
    probe = f"{{kind: linear-probe, data: {root / 'colours'}, train_data: {root / 'train.jsonl'}}}"
    rows = [{"image": str(path), "class": path.parent.name} for path in (root / "colours").rglob("*.png")] * 2
    (root / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    evaluations = f"evaluate=[{{kind: zero-shot, data: {root / 'colours'}}}, {probe}]"
    recipes = [
        tiny_recipe(root / "siglip", data, evaluations, "optimizer.average_decay=0.9"),
        tiny_recipe(root / "clip", data, "task.loss=clip", "model.preset=clip-test-tiny"),
    ]
    run_ranks(train_in_ranks, 1, recipes)
    return root


def export(run: Path, form: str, out: Path, *extra: str) -> Path:
    command = ["export", str(run), "--format", form, "--out", str(out), "--json", *extra]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert json.loads(done.stdout)["folder"] == str(out)
    return out


def run_code(folder: Path) -> None:
    """The card's own lines, in the folder."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    script = folder / "card.py"
    script.write_text(BLOCK + code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path += {sys.path!r}; exec(open('card.py').read())"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def front_matter(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_model_card_holds_the_recorded_figures(runs: Path) -> None:
    folder = runs / "siglip/export"
    card = (folder / "README.md").read_text()
    matter = front_matter(card)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("transformers", "zero-shot-image-classification")
    provenance = json.loads((folder / "provenance.json").read_text())
    [data] = provenance["data"]
    assert (data["num_samples"], data["num_shards"]) == (NUM_PAIRS, 3)
    assert f"| {NUM_PAIRS} | 3 | 1 | `{data['manifest_hash']}` |" in card
    assert "48 samples seen" in card
    assert "Passes over the data: 1." in card
    figures = [json.loads(line) for line in (runs / "siglip/evaluations.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in figures] == ["zero-shot", "linear-probe"]
    for line in figures:
        assert f"| {line['kind']} | `{runs / 'colours'}` | top1 | {line['top1']:.4g} |" in card
    [entry] = matter["model-index"]
    assert [metric["value"] for metric in entry["results"][1]["metrics"] if metric["name"] == "top1"] == [
        figures[1]["top1"]
    ]
    [recipe] = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert yaml.safe_load(recipe)["model"] == {"preset": "siglip-test-tiny"}
    run_code(folder)


def test_figures_are_those_of_the_exported_weights(runs: Path, tmp_path: Path) -> None:
    """The average was never evaluated."""
    folder = export(runs / "siglip", "hf", tmp_path / "average", "--average")
    card = (folder / "README.md").read_text()
    assert "the moving average of the weights" in card
    assert "None was measured on these weights" in card
    assert "model-index" not in front_matter(card)


def test_open_clip(runs: Path, tmp_path: Path) -> None:
    folder = export(runs / "clip", "open-clip", tmp_path / "out")
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["largest_output_difference"] < 1e-6
    card = (folder / "README.md").read_text()
    assert "create_model_and_transforms" in card
    assert f"at most {receipt['largest_output_difference']:.3g}" in card


@needs_onnx
@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_onnx(runs: Path, tmp_path: Path, name: str) -> None:
    folder = export(runs / name, "onnx", tmp_path / "out")
    receipt = json.loads((folder / "receipt.json").read_text())
    assert 0 < receipt["largest_output_difference"] < 1e-5
    assert json.loads((folder / "scores.json").read_text())["logit_scale"] == pytest.approx(
        10 if name == "siglip" else 14.28, rel=0.1
    )
    assert (folder / "vision.onnx").stat().st_size + (folder / "text.onnx").stat().st_size > 4 * receipt[
        "num_parameters"
    ]
    run_code(folder)


def test_onnx_is_refused_in_one_line(tmp_path: Path) -> None:
    if HAS_ONNX:
        with pytest.raises(InputError, match="this is llava"):
            onnx_towers.export(write_run(tmp_path / "run", "llava"), str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"onnx_that_nobody_has: pip install 'pairloom\[onnx\]'"):
        onnx_towers.export("run", "out", packages=("onnx_that_nobody_has",))


def test_llava(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "llava")
    folder = export(tmp_path / "run", "hf", tmp_path / "out")
    assert front_matter((folder / "README.md").read_text())["pipeline_tag"] == "image-text-to-text"
    run_code(folder)
