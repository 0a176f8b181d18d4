"""Plug-ins from packages of others: installed beside pairloom, used in a recipe, refused in one line where broken."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pytest

import pairloom
from pairloom.plugins import SIGNALS, CaptionSignal, Name
from tests.support.environments import REPOSITORY, build_distributions, make_environment, run
from tests.support.raw_builder import encoded, photograph

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


def write_source(folder: Path) -> None:
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index)))
        (folder / f"{index}.txt").write_text("word " * (index + 1))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel of pairloom, the packages of examples/, and a broken one."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "broken").mkdir()
    (folder / "broken" / "pyproject.toml").write_text(BROKEN)
    _, wheel = build_distributions(folder / "dist")
    examples = [REPOSITORY / "examples" / name for name in ("own_signal", "own_source")]
    return make_environment(folder / "venv", wheel, *examples, folder / "broken")


@pytest.mark.slow
def test_a_signal_of_another_package_works_in_a_recipe(python: Path, tmp_path: Path) -> None:
    write_source(tmp_path / "images")
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


@pytest.mark.slow
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


class VowelSignal(CaptionSignal):
    """vowels: how many vowels a caption has."""

    kind: Literal["vowels"]
    name: Name = "vowels"
    score_columns: ClassVar[tuple[str, ...]] = ("vowels",)
    arrow_schema: ClassVar[pa.Schema] = pa.schema([pa.field("uid", pa.string()), pa.field("vowels", pa.int32())])

    def measure_caption(self, caption: str) -> tuple[int]:
        """The count."""
        return (sum(letter in "aeiou" for letter in caption),)


def test_a_notebook_registers_its_own_signal(tmp_path: Path, ray_session: None) -> None:
    SIGNALS.register("vowels", VowelSignal)
    write_source(tmp_path / "images")
    settings = {
        "root": str(tmp_path / "out"),
        "source": {"kind": "folder", "path": str(tmp_path / "images")},
        "signals": [{"kind": "vowels"}],
        "select": {"scores": [{"signal": "vowels", "min": 3}]},
    }
    pairloom.curate(settings)
    frame = pairloom.open(str(tmp_path / "out")).to_pandas(["caption", "vowels"])
    assert sorted(frame["vowels"]) == [3, 4, 5, 6]
    with pytest.raises(pairloom.RecipeError, match=r"unknown key signals\.0\.vowels\.nam; did you mean name"):
        pairloom.load_recipe({**settings, "signals": [{"kind": "vowels", "nam": "x"}]})
