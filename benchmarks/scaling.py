"""Cost of billions of pairs: unit costs measured on this machine, and from them hours, nodes and storage.

    python -m benchmarks.scaling measure --data FOLDER --write    # some of unit_costs.json
    python -m benchmarks.scaling table       # the tables of docs/explanation/scaling.md, from unit_costs.json
    python -m benchmarks.scaling table --costs MINE.json --hours 48 --cores-per-node 96

`FOLDER` holds photographs (`*.jpg`). The other unit costs come from `benchmarks.dedupe`, `benchmarks.curate` and
`benchmarks.ingest`; write them into a copy of unit_costs.json, which names the command of each.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.unit_costs import FEW, measure_costs

PAIRS = (1_000_000_000, 5_000_000_000, 12_800_000_000)
COSTS = Path(__file__).parent / "unit_costs.json"


@dataclass(frozen=True)
class Assumed:
    """The assumptions of a table."""

    hours: float  # allowed per step
    cores_per_node: int
    gpus_per_node: int
    success: float  # share of the URLs that still give an image
    kept: float  # share of the images that the selection keeps


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Unit costs, and the cost of billions of pairs."""


def core_hours(costs: dict[str, Any], rows: int, assumed: Assumed) -> dict[str, float | None]:
    """Core hours (GPU hours of the clip step) of each step over `rows` input rows; None where not measured."""
    images = rows * assumed.success
    megabytes = times(images * assumed.kept / 1e6, costs["bytes"]["image"])
    seconds = {
        "ingest": times(images / 1e3, costs["ingest"]["cpu_ms_per_image"]),
        "clip (GPU hours)": times(images / 1e3, costs["clip"]["gpu_ms_per_image"]),
        "captions": times(rows / 1e3, costs["captions"]["cpu_ms_per_row"]),
        "dedupe": times(images / 1e6, costs["dedupe"]["cpu_s_per_million"]),
        # Clusters and their sizes both grow with the square root of the images: the work with the power 1.5.
        "semantic": times((images / 1e6) ** 1.5, costs["semantic"]["cpu_s_per_million"]),
        "balance": over(rows, costs["balance"]["captions_per_s_core"]),
        "select": times(rows / 1e6, costs["select"]["cpu_s_per_million"]),
        "reshard": over(megabytes, costs["reshard"]["mb_per_s_core"]),
    }
    return {step: None if value is None else value / 3600 for step, value in seconds.items()}


def times(number: float, cost: float | None) -> float | None:
    """A product, None where the cost is not measured."""
    return None if cost is None else number * cost


def over(number: float | None, rate: float | None) -> float | None:
    """A quotient, None where the rate is not measured."""
    return None if number is None or rate is None else number / rate


def terabytes(costs: dict[str, Any], rows: int, assumed: Assumed) -> dict[str, float | None]:
    """Storage of each step; dedupe's spill files are gone when it is done."""
    images, size = rows * assumed.success, costs["bytes"]
    return {
        "raw tars": times(images / 1e12, size["image"]),
        "raw tables": times(rows / 1e12, size["raw_table"]),
        "features (image and text, 512, fp16)": images * 2 * 512 * 2 / 1e12,
        "ledger (signals, dedupe, balance, selection)": times(rows / 1e12, size["ledger"]),
        "dedupe's table alone": times(rows / 1e12, size["dedupe_table"]),
        "dedupe's spill files, for a time": times(images / 1e12, costs["dedupe"]["spill_bytes_per_sample"]),
        "curated tars": times(images * assumed.kept / 1e12, size["image"]),
    }


def nodes_for(hours: float, per_node: int, allowed: float) -> int:
    """Nodes that do `hours` of one core (or GPU) in the hours allowed."""
    return max(1, -int(-hours // (per_node * allowed)))


def print_table(costs: dict[str, Any], assumed: Assumed) -> None:
    """Markdown: one column for each number of pairs."""
    print("| | " + " | ".join(f"{rows / 1e9:g} billion pairs" for rows in PAIRS) + " |")
    print("| --- |" + " --- |" * len(PAIRS))
    hours = [core_hours(costs, rows, assumed) for rows in PAIRS]
    for step in hours[0]:
        print(f"| {step} | " + " | ".join(hours_cell(step, column[step], assumed) for column in hours) + " |")
    sizes = [terabytes(costs, rows, assumed) for rows in PAIRS]
    for kind in sizes[0]:
        cells = ["not measured" if column[kind] is None else f"{column[kind]:,.1f} TB" for column in sizes]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print("| shards of 10,000 rows | " + " | ".join(f"{rows // 10_000:,}" for rows in PAIRS) + " |")


def hours_cell(step: str, hours: float | None, assumed: Assumed) -> str:
    """A cell of the table."""
    if hours is None:
        return "not measured"
    per_node = assumed.gpus_per_node if "GPU" in step else assumed.cores_per_node
    nodes = nodes_for(hours, per_node, assumed.hours)
    unit = "GPU h" if "GPU" in step else "core h"
    return f"{hours:,.0f} {unit}: {nodes} nodes, {hours / (per_node * nodes):.1f} h"


def print_costs(costs: dict[str, Any]) -> None:
    """Markdown: the unit costs, and the command that measures each."""
    print("| Unit cost | | From `python -m ...` |")
    print("| --- | --- | --- |")
    for step, cost in costs.items():
        *values, (_, command) = cost.items()
        figures = ", ".join(f"{name} {'not measured' if value is None else f'{value:,}'}" for name, value in values)
        print(f"| {step} | {figures.replace('_', ' ')} | {command} |")


@main.command()
@click.option("--data", type=Path, required=True, help="A folder of photographs.")
@click.option("--images", default=4000, help="Number of photographs.")
@click.option("--rows", default=24_000, help="Rows; photographs repeat under other names and captions.")
@click.option("--write", is_flag=True, help="Put the costs into benchmarks/unit_costs.json.")
def measure(data: Path, images: int, rows: int, write: bool) -> None:
    """Costs of captions, balance and reshard, and the bytes of each step; a few minutes. One JSON line each."""
    names = [str(path.relative_to(data)) for path in sorted(data.rglob("*.jpg"))[:images]]
    if len(names) < rows // FEW:
        raise click.BadParameter(f"{data} holds {len(names)} *.jpg; --rows {rows} needs {rows // FEW}")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_costs(data.resolve(), names, rows, Path(scratch))
    for step, cost in found.items():
        print(json.dumps({step: cost}), flush=True)
    if write:
        costs = json.loads(COSTS.read_text())
        for step, cost in found.items():
            command = f"benchmarks.scaling measure --data FOLDER --images {images} --rows {rows}"
            costs[step] = {**costs[step], **cost, "from": command}
        lines = [f"  {json.dumps(step)}: {json.dumps(cost)}" for step, cost in costs.items()]
        COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@main.command()
@click.option("--costs", type=Path, default=COSTS, help="Unit costs.")
@click.option("--hours", default=24.0, help="Hours allowed per step.")
@click.option("--cores-per-node", default=64)
@click.option("--gpus-per-node", default=8)
@click.option("--success", default=0.8, help="Share of the URLs that still give an image.")
@click.option("--kept", default=0.3, help="Share of the images that the selection keeps.")
def table(costs: Path, hours: float, cores_per_node: int, gpus_per_node: int, success: float, kept: float) -> None:
    """Unit costs; and hours, nodes and storage for billions of pairs."""
    assumed = Assumed(hours, cores_per_node, gpus_per_node, success, kept)
    read = json.loads(costs.read_text())
    print_costs(read)
    print(
        f"\nEach step in {hours:g} hours, nodes of {cores_per_node} cores or {gpus_per_node} GPUs, {success:.0%} of "
        f"the URLs alive, {kept:.0%} of the images kept:\n"
    )
    print_table(read, assumed)


if __name__ == "__main__":
    main()
