"""Plug-ins from packages of others: installed beside pairloom, used in a recipe, refused in one line where broken."""

from __future__ import annotations

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


@pytest.mark.slow
def test_a_signal_of_another_package_works_in_a_recipe(tmp_path: Path) -> None:
    """examples/own_signal beside the wheel of pairloom, and a package whose plug-in cannot be imported."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyproject.toml").write_text(BROKEN)
    _, wheel = build_distributions(tmp_path / "dist")
    example = REPOSITORY / "examples" / "own_signal"
    python = make_environment(tmp_path / "environment", wheel, example, tmp_path / "broken")
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
