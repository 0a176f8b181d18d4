"""The run folder: the resolved recipe that a run goes on with, and what is made at its end."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from schemas import storage
from schemas.errors import RecipeError
from schemas.train_recipe import TrainRecipe
from trainers.checkpoint import complete_checkpoints
from trainers.distributed import rank

logger = logging.getLogger("pairloom.train")
MAY_CHANGE = {
    "run.dir",
    "run.total_samples",
    "run.checkpoint_every_samples",
    "run.evaluate_every_samples",
    "run.keep_checkpoints",
    "data.num_workers",
    "batch.micro_batch_size",
    "zero.stage",
    "evaluate",
}
"""Fields that a run may go on with in another value; all others would make it another run."""


def open_run(recipe: TrainRecipe) -> Path:
    """Make the run folder, or check that it belongs to this recipe. Raises RecipeError naming the field."""
    if not storage.is_local(recipe.run.dir):
        raise RecipeError(f"run.dir {recipe.run.dir}: must be a local path for now; export to a URL afterwards")
    run_dir = Path(storage.local_path(recipe.run.dir))
    if rank() == 0:
        _begin_or_go_on(run_dir, recipe.model_dump(mode="json"))
    dist.barrier()
    return run_dir


def _begin_or_go_on(run_dir: Path, wanted: dict[str, Any]) -> None:
    """Write recipe.yaml; what another recipe left before its first checkpoint is removed."""
    path = run_dir / "recipe.yaml"
    difference = _first_difference(yaml.safe_load(path.read_text()), wanted) if path.exists() else None
    if difference is not None:
        if complete_checkpoints(run_dir):
            raise RecipeError(f"{run_dir}: {difference}; name another run.dir")
        for name in ("tokenizer", "locked", "tb"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    storage.put_bytes(str(path), yaml.safe_dump(wanted, sort_keys=False).encode())


def _first_difference(before: Any, wanted: Any) -> str | None:
    """The first field, in words, whose change makes another run."""
    old, new = _flat(before), _flat(wanted)
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key) and not any(key == m or key.startswith(f"{m}.") for m in MAY_CHANGE):
            return f"began with {key}={old.get(key)}, the recipe says {new.get(key)}"
    return None


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path, through lists as well."""
    if isinstance(settings, list):
        settings = {str(index): value for index, value in enumerate(settings)}
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def finish_run(recipe: TrainRecipe, run_dir: Path) -> None:
    """Evaluate the last checkpoint and export it; what is there already is not made again. Rank 0 works."""
    if rank() == 0:
        newest = complete_checkpoints(run_dir)[-1]
        evaluate_checkpoint(recipe, run_dir, newest)
        exported = run_dir / "export" / "provenance.json"
        step = int(newest.name.removeprefix("step-"))
        if not exported.exists() or json.loads(exported.read_text())["step"] != step:
            from trainers.export.hugging_face import export

            export(str(run_dir), str(run_dir / "export"), step)
            logger.info("%s: exported to %s", run_dir, run_dir / "export")
    dist.barrier()


def evaluate_checkpoint(recipe: TrainRecipe, run_dir: Path, checkpoint: Path) -> None:
    """Run the recipe's evaluations on a checkpoint's model; one line each in evaluations.jsonl. Rank 0 only."""
    from trainers.evaluate.run import evaluate

    path = run_dir / "evaluations.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for part in recipe.evaluate:
        key = {"checkpoint": checkpoint.name, "kind": part.kind, "data": part.data}
        if any(key.items() <= line.items() for line in done):
            continue
        result = {**evaluate(str(checkpoint / "model"), part.kind, part.data), **key}
        logger.info("%s: %s", run_dir, json.dumps(result))
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
