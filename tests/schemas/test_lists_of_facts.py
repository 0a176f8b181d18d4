"""Lists that the documentation shows hold all there is: environment variables, fields of metrics."""

from __future__ import annotations

import re

from pairloom.schemas.environment import VARIABLES
from tests.support.environments import REPOSITORY

PACKAGES = ("schemas", "pipelines", "trainers", "cluster", "examples/demo", "pairloom")


def test_every_variable_of_ours_is_listed() -> None:
    listed = {name.strip() for variable in VARIABLES for name in variable.name.split(",")}
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            used = set(re.findall(r'"(PAIRLOOM_[A-Z_]+)"', path.read_text()))
            assert used <= listed, path
