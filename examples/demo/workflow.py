"""The workflow of the demo, top to bottom: URLs -> curated -> SigLIP -> self-filter -> SigLIP -> LLaVA -> figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairloom.cluster.launch_trainer import launch_trainer
from pairloom.cluster.ray_session import start_ray, stop_ray
from pairloom.demo.held_out import build_held_out
from pairloom.demo.meter import Meter
from pairloom.demo.server import choose_port, serve
from pairloom.demo.source import build_conversations, build_source
from pairloom.pipelines.curate import curate
from pairloom.schemas.data_set.result_path import ResultPath
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.evaluate.run import evaluate
from pairloom.trainers.evaluate.vqa import ImageMode

logger = logging.getLogger("pairloom")
RECIPES = Path(__file__).parent / "recipes"
NUM_PICTURES = 6000
NUM_CORES = 2  # CPU cores in use: two runs of one rank each, or one run of two ranks


@dataclass
class Workflow:
    """The folders and the figures of one demo."""

    out: Path
    meter: Meter
    folders: dict[str, str] = field(default_factory=dict)  # curation results by "<step>/<name>"
    scores: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # evaluations by "<run>/<kind>"

    @property
    def data(self) -> Path:
        """Root of the curation."""
        return self.out / "data"

    def run(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "runs" / name

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Log the start of a stage and measure its wall time."""
        logger.info("demo: %s", name)
        with self.meter.stage(name):
            yield


def run_workflow(out: Path, meter: Meter) -> Workflow:
    """Run every stage that is not complete below `out`."""
    result = Workflow(out, meter)
    port = choose_port(out)
    with result.stage("draw pictures"):
        table = build_source(out / "source", f"http://127.0.0.1:{port}", NUM_PICTURES)
        build_held_out(out / "held_out")
    with serve(out / "source", port), result.stage("curate"):
        _curate(result, "demo-curate", source=table)
    with result.stage("train two fold models"):
        _train_both(
            result, _siglip(result, "fold0", "basic", fold=[0, 2]), _siglip(result, "fold1", "basic", fold=[1, 2])
        )
    with result.stage("filter out of fold"):
        _curate(result, "demo-self-filter", source=table)
        stop_ray()
    with result.stage("train before and after the filter"):
        _train_both(result, _siglip(result, "raw", "basic"), _siglip(result, "filtered", "filtered"))
    with result.stage("tune LLaVA"):
        _tune_llava(result)
    with result.stage("evaluate"):
        _evaluate(result)
    return result


def _curate(result: Workflow, recipe: str, source: Path) -> None:
    overrides = [_set("root", result.data), _set("source.path", source)]
    if recipe == "demo-self-filter":
        overrides.append(_set("signals.1.models", [str(result.run(f"fold{k}") / "export") for k in range(2)]))
    settings = load_recipe(str(RECIPES / f"{recipe}.yaml"), CurateRecipe, overrides)
    summary = curate(settings, start_ray=start_ray)
    for step in summary["steps"]:
        path = ResultPath.parse(step["folder"])
        if path is not None:
            result.folders[f"{path.step}/{path.name}"] = step["folder"]


def _siglip(result: Workflow, run: str, data: str, fold: list[int] | None = None) -> TrainRecipe:
    overrides = [_set("run.dir", result.run(run)), _set("data.train.0.path", result.data / "curated" / data)]
    if fold is not None:
        overrides.append(_set("data.train.0.hold_out_fold", fold))
    return load_recipe(str(RECIPES / "demo-siglip.yaml"), TrainRecipe, overrides)


def _llava(recipe: str, run: Path, *overrides: str) -> TrainRecipe:
    return load_recipe(str(RECIPES / f"{recipe}.yaml"), TrainRecipe, [_set("run.dir", run), *overrides])


def _tune_llava(result: Workflow) -> None:
    """Train on text alone (also the blind twin), then align, then instruct."""
    conversations = build_conversations(result.out / "source", result.folders["curated/basic"])
    vision = _set("model.llava.vision", result.run("filtered") / "export")
    data = (_set("data.train.0.path", conversations), _set("data.train.0.images", result.data / "curated" / "basic"))
    captions = result.data / "curated" / "filtered"
    texts = _set("data.train.1.path", captions)
    launch_trainer(_llava("demo-text-only", result.run("text_only"), vision, *data, texts), num_processes=NUM_CORES)
    language = _set("model.llava.language", result.run("text_only") / "export")
    pictures = _set("data.train.0.path", captions)
    launch_trainer(_llava("demo-align", result.run("align"), vision, language, pictures), num_processes=NUM_CORES)
    aligned = _set("model.path", result.run("align") / "export")
    launch_trainer(_llava("demo-instruct", result.run("instruct"), aligned, *data), num_processes=NUM_CORES)


def _evaluate(result: Workflow) -> None:
    held_out = result.out / "held_out"
    for run in ("raw", "filtered"):
        model = str(result.run(run) / "export")
        result.scores[f"{run}/zero-shot"] = evaluate(model, "zero-shot", str(held_out / "classes"))
        result.scores[f"{run}/retrieval"] = evaluate(model, "retrieval", str(held_out / "pairs.jsonl"))
    questions = str(held_out / "vqa.jsonl")
    readers: tuple[tuple[str, str, ImageMode], ...] = (
        ("instruct", "instruct", "real"),
        ("image removed", "instruct", "none"),
        ("wrong image", "instruct", "wrong"),
        ("text only", "text_only", "none"),
        ("align alone", "align", "real"),
    )
    for name, run, image_mode in readers:
        model = str(result.run(run) / "export")
        result.scores[f"{name}/vqa"] = evaluate(model, "vqa", questions, image_mode=image_mode)


def _train_both(result: Workflow, first: TrainRecipe, second: TrainRecipe) -> None:
    """Two runs in parallel, one core each."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda recipe: launch_trainer(recipe, threads=1), (first, second)))


def _set(key: str, value: object) -> str:
    """An override in YAML's JSON subset, so that any path is safe."""
    return f"{key}={json.dumps(value if isinstance(value, list) else str(value))}"
