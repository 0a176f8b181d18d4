"""Write training_runs.json: `python -m tests.golden.make_training_runs`.

Made by one rank with one thread on an x86-64 processor, torch 2.13.0. Run it only after a change that is meant
to give other losses.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests.support.golden_runs import TRAINING_RUNS, figures_of, recipe_of, settings_of_runs, write_inputs
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import train_in_ranks


def main() -> None:
    """Train all runs in one process."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_inputs(root)
        runs = settings_of_runs(root)
        recipes = [recipe_of(settings, root / "runs" / name) for name, settings in runs.items()]
        run_ranks(train_in_ranks, 1, recipes)
        figures = {name: figures_of(root / "runs" / name) for name in runs}
    TRAINING_RUNS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
