"""`pairloom doctor`: finds problems that would stop a run, before the run."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from pairloom.schemas.data_set.manifest import resolve
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from pairloom.schemas.recipes.load import load_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.schemas.storage import listing, storage
from pairloom.trainers.data.tar_index import find_tars

PACKAGES = ("pairloom", "torch", "deepspeed", "transformers", "ray", "pyarrow", "webdataset", "fsspec", "s3fs")
MIN_FREE_BYTES = 2 << 30


def preflight(recipe: str | None) -> dict[str, Any]:
    """Versions, devices, compiler, free disk, and the recipe's paths; `problems` lists what must be fixed."""
    problems: list[str] = []
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "packages": {name: _version(name, problems) for name in PACKAGES},
        "cpus": os.cpu_count() or 0,
        "gpus": _gpus(),
        "compiler": shutil.which("g++") or shutil.which("c++"),
        "free_bytes": shutil.disk_usage(".").free,
    }
    if report["compiler"] is None:
        problems.append("no C++ compiler: DeepSpeed cannot build its CPU operators; install g++")
    if recipe is not None:
        report["recipe"] = _check_recipe(recipe, problems)
    return {**report, "problems": problems}


def _version(name: str, problems: list[str]) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"package {name} is not installed; run `make venv`")
        return "missing"


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _check_recipe(path: str, problems: list[str]) -> str:
    """Validate a recipe of either kind and look up what it reads; returns its kind."""
    try:
        settings = yaml.safe_load(storage.read_text(path))
        if isinstance(settings, dict) and "task" in settings:
            _check_train(load_recipe(path, TrainRecipe), problems)
            return "train"
        _check_curate(load_recipe(path, CurateRecipe), problems)
    except (FileNotFoundError, yaml.YAMLError, RecipeError) as error:
        problems.append(f"{path}: {' '.join(str(error).split())}")
        return "unusable"
    return "curate"


def _check_curate(recipe: CurateRecipe, problems: list[str]) -> None:
    paths = [recipe.source.path] if isinstance(recipe.source.path, str) else recipe.source.path
    problems += [f"source.path: nothing at {path}" for path in paths if not listing.expand(path)]
    for signal in recipe.signals:
        folders = signal.model_folders()
        problems += [f"signals.{signal.name}: no model at {path}" for path in folders if not _is_model(path)]
    _check_disk(recipe.root, problems)


def _check_train(recipe: TrainRecipe, problems: list[str]) -> None:
    for source in recipe.data.train:
        if not source.path.endswith((".json", ".jsonl")):
            try:
                resolve(source.path)
            except InputError as error:
                if not find_tars(source.path):
                    problems.append(f"data.train: {error}, nor tars")
        elif not storage.exists(source.path):
            problems.append(f"data.train: nothing at {source.path}")
    _check_disk(recipe.run.dir, problems)


def _is_model(path: str) -> bool:
    return storage.exists(storage.join(path, "config.json"))


def _check_disk(target: str, problems: list[str]) -> None:
    if not storage.is_local(target):
        return
    existing = next(parent for parent in [Path(target), *Path(target).absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        problems.append(f"{target}: only {free >> 20} MiB free; make room for at least {MIN_FREE_BYTES >> 30} GiB")
