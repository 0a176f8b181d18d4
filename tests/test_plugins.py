"""Plug-ins from packages of others: installed beside pairloom, used in a recipe, refused in one line where broken."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pytest

import pairloom
from pairloom.plugins import SIGNALS, CaptionSignal, Name
from tests.support.raw_builder import encoded, photograph


def write_source(folder: Path) -> None:
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index)))
        (folder / f"{index}.txt").write_text("word " * (index + 1))


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
