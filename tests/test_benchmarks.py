"""Every benchmark can be imported, and every command that starts one names an existing module.

They run for minutes, so the tests do not run them; an import finds names that have moved.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess

import pytest

from tests.support.shared_data import REPOSITORY

MODULES = sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py"))
OWN_PACKAGES = ("benchmarks", "pairloom", "tests")
COMMAND = re.compile(r"""-m"?,?\s+"?benchmarks\.(\w+)""")
BY_PATH = re.compile(r"python\s+benchmarks/\w+\.py")
TEXTS = ("*.py", "*.md", "Makefile", "*.toml", "*.ipynb")


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name: str) -> None:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN_PACKAGES or importlib.util.find_spec(package) is not None:
            raise
        pytest.skip(f"package {package} is not installed")


def test_commands_name_modules_that_exist() -> None:
    command = ["git", "ls-files", "-z", *TEXTS]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the repository is not a git checkout, which lists its files")
    found: dict[str, set[str]] = {}
    for file in filter(None, listed.stdout.split("\0")):
        path = REPOSITORY / file
        if not path.is_file():  # deleted but not committed
            continue
        text = path.read_text()
        assert not BY_PATH.search(text), f"{file}: run benchmarks as `python -m benchmarks.NAME`"
        for name in COMMAND.findall(text):
            found.setdefault(name, set()).add(file)
    assert found
    unknown = {name: sorted(files) for name, files in found.items() if name not in MODULES and name != "NAME"}
    assert not unknown
