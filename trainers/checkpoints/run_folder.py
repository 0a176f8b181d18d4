"""The run folder: the resolved recipe that a run goes on with, and what is made at its end."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import storage
from pairloom.trainers.checkpoints.checkpoint import complete_checkpoints, remove_partial
from pairloom.trainers.checkpoints.remote_copy import RUN_FILES, RemoteCopy, local_folder
from pairloom.trainers.ranks import local_rank, rank

logger = logging.getLogger("pairloom.train")
MAY_CHANGE = {
    "run.dir",
    "run.total_samples",
    "run.checkpoint_every_samples",
    "run.evaluate_every_samples",
    "run.keep_checkpoints",
    "data.num_workers",
    "data.cache_gb",
    "batch.micro_batch_size",
    "zero.stage",
    "evaluate",
}
"""Fields that a run may go on with in another value; all others would make it another run."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run is written, and what copies it to its URL if it has one."""

    path: Path
    remote_copy: RemoteCopy | None

    def put(self, *names: str) -> None:
        """Copy files or folders to the run's URL."""
        if self.remote_copy is not None:
            self.remote_copy.put(names)


def open_run(recipe: TrainRecipe) -> RunFolder:
    """Make the run folder, or check that it belongs to this recipe. Raises RecipeError naming the field."""
    url = recipe.run.dir
    if storage.is_local(url):
        run = RunFolder(Path(storage.local_path(url)), None)
    else:
        path = local_folder(url)
        run = RunFolder(path, RemoteCopy(path, url))
        if local_rank() == 0:
            RemoteCopy(path, url).fetch_run()
        dist.barrier()
    if rank() == 0:
        _begin_or_resume(run.path, recipe)
        run.put("recipe.yaml")
    dist.barrier()
    return run


def share_folder(run: RunFolder, name: str) -> None:
    """What rank 0 has made in the run folder, on every machine. Every rank calls it."""
    if run.remote_copy is not None:
        if rank() == 0:
            run.remote_copy.put([name])
        dist.barrier()
        if local_rank() == 0 and rank() != 0:
            run.remote_copy.fetch(name)
    dist.barrier()


def clean_run(run: RunFolder) -> None:
    """Remove what an interrupted save left. Every rank calls it."""
    if local_rank() == 0:
        remove_partial(run.path)
    if rank() == 0 and run.remote_copy is not None:
        run.remote_copy.remove_partial()
    dist.barrier()


def _begin_or_resume(run_dir: Path, recipe: TrainRecipe) -> None:
    """Write recipe.yaml. Files of another recipe are removed, unless it has a checkpoint: then RecipeError."""
    path, wanted = run_dir / "recipe.yaml", recipe.model_dump(mode="json")
    difference = _difference_from(path, wanted) if path.exists() else None
    if difference is not None:
        if complete_checkpoints(run_dir):
            raise RecipeError(f"{run_dir}: {difference}; name another run.dir")
        for name in ("tokenizer", "init_from", "locked", "tb"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    storage.put_bytes(str(path), yaml.safe_dump(wanted, sort_keys=False).encode())


def _difference_from(path: Path, wanted: dict[str, Any]) -> str | None:
    """The first field, in words, whose change makes another run than that of the recipe at `path`.

    The old recipe is parsed, so that a field that it lacks (an older pairloom wrote it) has its default.
    """
    try:
        before = parse_recipe(yaml.safe_load(path.read_text()), TrainRecipe, where=path.name)
    except RecipeError as error:
        return f"this version cannot read {error}"
    return _first_difference(before.model_dump(mode="json"), wanted)


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


def finish_run(recipe: TrainRecipe, run: RunFolder) -> None:
    """Evaluate the last checkpoint and export it; what is there already is not made again. Rank 0 works."""
    run_dir = run.path
    if rank() == 0:
        newest = complete_checkpoints(run_dir)[-1]
        evaluate_checkpoint(recipe, run_dir, newest)
        exported = run_dir / "export" / "provenance.json"
        step = int(newest.name.removeprefix("step-"))
        if not exported.exists() or json.loads(exported.read_text())["step"] != step:
            from pairloom.trainers.export.hugging_face import export

            export(str(run_dir), str(run_dir / "export"), step)
            logger.info("%s: exported to %s", run_dir, run_dir / "export")
            run.put("export")
        run.put(*RUN_FILES)
    dist.barrier()


def evaluate_checkpoint(recipe: TrainRecipe, run_dir: Path, checkpoint: Path) -> None:
    """Run the recipe's evaluations on a checkpoint's model; one line each in evaluations.jsonl. Rank 0 only."""
    from pairloom.trainers.evaluate.run import run_evaluation

    path = run_dir / "evaluations.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for part in recipe.evaluate:
        key = {"checkpoint": checkpoint.name, **part.model_dump(mode="json")}
        if any({name: line.get(name) for name in key} == key for line in done):
            continue
        result = {**run_evaluation(str(checkpoint / "model"), part), "checkpoint": checkpoint.name}
        logger.info("%s: %s", run_dir, json.dumps(result))
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
