"""The installed package: wheel and sdist are whole, and files of the user never get in its way."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.environments import REPOSITORY, build_distributions, make_environment, run
from tests.support.raw_builder import encoded, photograph

pytestmark = pytest.mark.slow
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


def test_the_wheel_works_where_the_repository_is_not(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", distributions[1])
    work = tmp_path / "work"
    work.mkdir()
    where = run(python, python, "-c", "import pairloom; print(pairloom.__file__)", folder=work)
    assert str(tmp_path) in where.stdout, where.stderr
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
