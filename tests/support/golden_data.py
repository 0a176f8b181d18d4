"""The data set of release 0.1.0 in `tests/golden`, copied to another path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.golden_steps import GOLDEN

DATA_SET = GOLDEN / "data_set_0_1_0"
ROOT_MARK = "<folder>"  # stands in segments for the folder that holds source and root: source files are named in full
FROZEN_TIME = 1_700_000_000  # seconds since 1970; segments freeze the time of a local file


def segment_files(folder: Path) -> Iterator[Path]:
    """The frozen lists of source files."""
    return (folder / "root" / "raw").glob("*/*/segments/*.json")


def copy_data_set(folder: Path) -> None:
    """Copy recipe, source and root to `folder`."""
    shutil.copytree(DATA_SET, folder, dirs_exist_ok=True)
    for path in segment_files(folder):
        path.write_text(path.read_text().replace(ROOT_MARK, str(folder.resolve())))
    for path in (folder / "source").iterdir():
        os.utime(path, (FROZEN_TIME, FROZEN_TIME))
