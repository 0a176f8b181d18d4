"""The installed package: wheel and sdist are whole, plug-ins of other packages work, files of the user do no harm."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

import pairloom
from tests.support.environments import REPOSITORY, build_distributions, make_environment, run
from tests.support.raw_builder import encoded, photograph

pytestmark = pytest.mark.slow
PRESET = "model={preset: siglip-demo}"
BROKEN = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "broken-plugin"
version = "1"
[project.entry-points."pairloom.signals"]
broken = "no_such_module:Signal"
[tool.setuptools]
py-modules = []
"""
DATA_FILES = {
    "pairloom/py.typed",
    "pairloom/cluster/recipes/curate-urls.yaml",
    "pairloom/demo/recipes/demo-siglip.yaml",
    "pairloom/demo/report.html",
    "pairloom/pipelines/inspect/report.html",
    "pairloom/trainers/export/model_card.md.jinja",
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_distributions(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, distributions: tuple[Path, Path]) -> Path:
    """The Python of an environment with the wheel of pairloom, the packages of examples/, and a broken one."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "broken").mkdir()
    (folder / "broken" / "pyproject.toml").write_text(BROKEN)
    examples = [folder / name for name in ("own_signal", "own_source", "own_task")]
    for example in examples:  # pip builds inside of the source folder
        shutil.copytree(REPOSITORY / "examples" / example.name, example)
    return make_environment(folder / "venv", distributions[1], *examples, folder / "broken")


def write_images(folder: Path) -> None:
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index)))
        (folder / f"{index}.txt").write_text(f"picture number {index}")


def modules_of_the_repository() -> set[str]:
    """Names of all modules as they are imported, found through the links of pairloom/."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    names = set()
    for line in listed.splitlines():
        top, _, rest = line.partition("/")
        if line.endswith(".py") and top in ("schemas", "pipelines", "trainers", "cluster"):
            names.add(f"pairloom/{line}")
        elif line.endswith(".py") and line.startswith("examples/demo/"):
            names.add(f"pairloom/demo/{rest.partition('/')[2]}")
        elif line.endswith(".py") and top == "pairloom":
            names.add(line)
    return names


def test_wheel_and_sdist_hold_every_module_once(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in files if name.endswith(".py")} == modules_of_the_repository()
    assert files >= DATA_FILES
    with tarfile.open(sdist) as tar:
        members = {member.name.partition("/")[2]: member for member in tar}
    assert set(members) >= DATA_FILES
    assert all(members[name].isfile() for name in DATA_FILES)


def test_the_wheel_works_where_the_repository_is_not(python: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    where = run(python, python, "-c", "import pairloom; print(pairloom.__file__)", folder=work)
    assert str(python.parents[1]) in where.stdout, where.stderr
    write_images(work / "images")
    (work / "recipe.yaml").write_text("root: out\nsource: {kind: folder, path: images}\nsignals: [{kind: captions}]\n")
    for arguments, expected in (
        (["recipes"], "curate-urls"),
        (["doctor", "recipe.yaml"], "problems"),
        (["curate", "recipe.yaml"], "reshard"),
        (["inspect", "out"], "curated/train"),
        (["demo", "--help"], "--out"),
    ):
        done = run(python, python.parent / "pairloom", *arguments, folder=work)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_files_of_the_user_do_not_get_in_the_way(tmp_path: Path) -> None:
    """`curate` and `train` run to their end in a folder with modules and packages of the same names as ours."""
    refuse = "raise ImportError('a file of the user was imported')\n"
    for name in ("schemas", "trainers", "queue", "secrets"):
        (tmp_path / f"{name}.py").write_text(refuse)
    for name in ("pipelines", "cluster", "examples", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(refuse)
    write_images(tmp_path / "images")
    (tmp_path / "curate.yaml").write_text(
        "root: out\nsource: {kind: folder, path: images}\nsignals: [{kind: quality}]\n"
    )
    (tmp_path / "train.yaml").write_text(
        "run: {dir: run, total_samples: 16}\ntask: {kind: contrastive, loss: siglip}\n"
        "model: {preset: siglip-demo}\ntokenizer: {train: {vocab_size: 300}}\n"
        "data: {train: [{path: out/curated/train}], num_workers: 1}\nbatch: {global_batch_size: 8}\n"
        "optimizer: {learning_rate: 1.e-3}\n"
    )
    for arguments in (["curate", "curate.yaml"], ["train", "train.yaml", "--num-processes", "2"]):
        done = run(Path(sys.executable), Path(sys.executable).parent / "pairloom", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_a_signal_of_another_package_works_in_a_recipe(python: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    recipe = "root: out\nsource: {kind: folder, path: images}\nsignals: [{kind: KIND}]\n"
    rules = "select: {scores: [{signal: brightness, column: brightness, top_fraction: 0.5}]}\n"
    (tmp_path / "own.yaml").write_text(recipe.replace("KIND", "brightness, clipped_above: 240") + rules)
    (tmp_path / "broken.yaml").write_text(recipe.replace("KIND", "broken"))
    done = run(python, python.parent / "pairloom", "curate", "own.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = pairloom.open(str(tmp_path / "out")).to_pandas(["brightness", "brightness_clipped"])
    every = pairloom.open(str(tmp_path / "out"), "raw/main").to_pandas(["brightness"])
    assert sorted(kept["brightness"]) == sorted(every["brightness"])[-4:]
    refused = run(python, python.parent / "pairloom", "curate", "broken.yaml", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "signal broken: cannot import no_such_module:Signal" in refused.stderr


def test_a_source_of_another_package_works_in_a_recipe(python: Path, tmp_path: Path) -> None:
    """Rows in are rows in the tables, with broken ones among them; a second run writes nothing."""
    with closing(sqlite3.connect(tmp_path / "images.db")) as database:
        database.execute("CREATE TABLE pairs (image BLOB, caption TEXT, url TEXT)")
        images = [*(encoded(photograph(index)) for index in range(5)), b"no image", None]
        rows = [(image, f"picture {index}", None) for index, image in enumerate(images)]
        database.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
        database.commit()
    (tmp_path / "own.yaml").write_text(
        "root: out\nsource: {kind: sqlite, path: images.db}\ningest: {samples_per_shard: 3}\n"
    )
    states = []
    for _ in range(2):
        done = run(python, python.parent / "pairloom", "curate", "own.yaml", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        states.append({path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()})
    assert states[0] == states[1]
    frame = pairloom.open(str(tmp_path / "out"), "raw/main").to_pandas(["caption", "drop_reason"])
    assert frame["caption"].tolist() == [f"picture {index}" for index in range(7)]
    assert frame["drop_reason"].tolist()[5:] == ["not_an_image", "missing_image"]
    assert frame["drop_reason"].isna().sum() == 5


def test_a_task_of_another_package_trains_and_exports(python: Path, tmp_path: Path, ray_session: None) -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vision")
    size = {"height": 32, "width": 32}
    ViTImageProcessorPil(size=size).save_pretrained(tmp_path / "vision")
    write_images(tmp_path / "images")
    pairloom.curate({"root": str(tmp_path / "data"), "source": {"kind": "folder", "path": str(tmp_path / "images")}})
    (tmp_path / "train.yaml").write_text(
        "run: {dir: run, total_samples: 320}\ntask: {kind: caption_length}\nmodel: {path: vision}\n"
        "data: {train: [{path: data/curated/train}], num_workers: 0}\nbatch: {global_batch_size: 8}\n"
        "optimizer: {learning_rate: 1.e-2}\n"
    )
    done = run(python, python.parent / "pairloom", "train", "train.yaml", "--num-processes", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    _, loading = ViTModel.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not loading["missing_keys"]
    refused = run(python, python.parent / "pairloom", "train", "train.yaml", PRESET, folder=tmp_path)
    assert refused.returncode == 2
    assert "takes model.path, a folder with a vision model" in refused.stderr
