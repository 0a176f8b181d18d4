"""Unit costs for `benchmarks.scaling`: CPU time and bytes that a further row costs, without the start of workers.

The curation runs twice, over few and over many rows, and the difference counts; bytes are those of the few rows, in
which no image repeats. Caption signals are too cheap for a difference: they are timed in this process, shard by shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.captions import random_captions, vocabulary
from benchmarks.curate import time_metaclip
from benchmarks.process_watch import TreeWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.curate import curate
from pairloom.pipelines.signals.captions import CaptionSignals, measure_caption
from pairloom.pipelines.signals.row_signals import measure_captions
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.recipes.curate import CurateRecipe

STEPS = ("ingest", "signals", "dedupe", "balance", "select", "reshard")
LEDGER = ("signals", "dedupe", "balance", "select")
SUFFIXES = {".parquet": "tables", ".tar": "tars", ".npy": "uids and features"}
FEW = 8  # ratio of the many rows to the few
CAPTIONS = 200_000  # of MetaCLIP's matching

StepCosts = dict[str, dict[str, float]]
"""Cost of each step: CPU seconds, rows, samples, and bytes of each kind."""


def recipe_for(table: Path, images: Path, root: Path) -> CurateRecipe:
    """All steps that need no model; nearly everything is kept, so that reshard has work."""
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "folder", "path": str(table), "images": str(images), "image_column": "image"},
            "signals": [{"kind": "captions"}],
            "balance": {"kind": "metaclip", "t": 1_000_000},
            "select": {"min_words": 3, "min_side": 100},
            "reshard": {},
        }
    )


def write_captions(path: Path, images: Sequence[str], captions: Sequence[str]) -> Path:
    """A table of images, which repeat under other URLs (of usual length), with captions."""
    lines = (
        {
            "image": images[row % len(images)],
            "url": f"http://www.a.test/{hashlib.md5(str(row).encode()).hexdigest()}/picture-{row}.jpg",
            "caption": caption,
        }
        for row, caption in enumerate(captions)
    )
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bytes_of(folder: Path) -> dict[str, int]:
    """Bytes below a folder, by kind."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            kind = SUFFIXES.get(path.suffix, "other")
            found[kind] = found.get(kind, 0) + path.stat().st_size
    return found


def measure_steps(recipe: CurateRecipe) -> StepCosts:
    """The cost of each step."""
    measured = {}
    for step in STEPS:
        watch = TreeWatch(os.getpid())
        watch.start()
        summary = curate(recipe, start_ray, only=step)
        cpu_s = watch.stop()
        folder = next(row["folder"] for row in reversed(summary["steps"]) if row["name"].startswith(step))
        manifest = load_manifest(folder)
        counts = {"rows": float(manifest.num_rows), "samples": float(manifest.num_samples)}
        measured[step] = {"cpu_s": cpu_s, **counts, **bytes_of(Path(folder))}
    return measured


def difference(many: StepCosts, few: StepCosts) -> StepCosts:
    """The cost of the further rows."""
    return {step: {name: value - few[step].get(name, 0) for name, value in cost.items()} for step, cost in many.items()}


def time_captions(root: Path, scratch: Path) -> float:
    """CPU milliseconds per row of the caption signals, over the raw tables of a curation."""
    (raw,) = (path.parent for path in (root / "raw").glob("*/*/manifest.json"))
    manifest = load_manifest(str(raw))
    signal = CaptionSignals(kind="captions")
    measure_caption("a photograph of a dog")  # loads the language model
    started_at = time.process_time()
    for shard in manifest.shards:
        measure_captions(signal, str(raw), str(scratch), shard)
    return 1000 * (time.process_time() - started_at) / manifest.num_rows


def measure_costs(images: Path, names: Sequence[str], num_rows: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """The costs of unit_costs.json that photographs give; `names` are file names below `images`."""
    captions = random_captions(vocabulary(150_000), num_rows, seed=0)
    start_ray()
    runs = []
    for name, num in (("few", num_rows // FEW), ("many", num_rows)):
        table = write_captions(scratch / name / "captions.jsonl", names, captions[:num])
        runs.append(measure_steps(recipe_for(table, images, scratch / name / "out")))
    further = difference(runs[1], runs[0])
    once, reshard = runs[0], further["reshard"]  # the few rows repeat no image; repeated hashes would compress well
    raw, dedupe = once["ingest"], once["dedupe"]
    ledger = sum(once[step].get("tables", 0) for step in LEDGER)
    captions_ms = time_captions(scratch / "many" / "out", scratch / "again")
    metaclip = time_metaclip(CAPTIONS, 475_000)["end_to_end_captions_per_s_core"]
    sizes = {
        "image": raw["tars"] / raw["samples"],
        "raw_table": raw["tables"] / raw["rows"],
        "ledger": ledger / raw["rows"],
        "dedupe_table": dedupe["tables"] / dedupe["rows"],
    }
    return {
        "captions": {"cpu_ms_per_row": round(captions_ms, 4)},
        "balance": {"captions_per_s_core": metaclip},
        "reshard": {"mb_per_s_core": round(reshard["tars"] / 1e6 / reshard["cpu_s"], 1)},
        "bytes": {name: round(size, 1) for name, size in sizes.items()},
    }
