"""Load YAML recipes strictly, apply `key=value` overrides, and hash the settings that change results.

A recipe is one frozen, hashable pydantic object. An unknown key is an error that names the nearest known key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pairloom.registry import PartOf
from pairloom.schemas.errors import RecipeError
from pairloom.schemas.storage import storage


class StrictModel(BaseModel):
    """Base of every recipe part: frozen, without unknown keys. Docstrings of fields become their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    not_hashed: ClassVar[Mapping[str, str]] = {}
    """Fields that the hash of a step's folder leaves out, each with the reason."""

    @classmethod
    def hash_note(cls, name: str) -> str:
        """For the documentation: whether a field is part of the hash of its step's folder."""
        return f"no: {cls.not_hashed[name]}" if name in cls.not_hashed else "yes"

    @model_validator(mode="before")
    @classmethod
    def _holds_no_nul(cls, settings: Any) -> Any:
        for key, value in settings.items() if isinstance(settings, dict) else ():
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{key} has a NUL character; remove it")
        return settings


Recipe = TypeVar("Recipe", bound=StrictModel)


def load_recipe(path: str, model: type[Recipe], overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply `dotted.path=value` overrides, validate. Raises RecipeError in one line."""
    settings = load_settings(path)
    for override in overrides:
        apply_override(settings, override)
    return parse_recipe(settings, model, where=path)


def load_settings(path: str) -> dict[str, Any]:
    """The settings of a YAML recipe, not validated yet. Raises RecipeError in one line."""
    try:
        settings = yaml.safe_load(storage.read_text(path))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; `pairloom recipes` lists the built-in ones") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: not YAML: {reason}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a recipe is a mapping, not {type(settings).__name__}; see `pairloom recipes`")
    return settings


def parse_recipe(settings: Mapping[str, Any], model: type[Recipe], where: str) -> Recipe:
    """Validate settings in memory. Raises RecipeError that names the field."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = [_describe(problem, model) for problem in error.errors()]
        raise RecipeError(f"{where}: {'; '.join(problems)}") from error


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` inside `settings`; the value is read as YAML."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"override {override!r}: write KEY=VALUE, for example select.min_words=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML; quote it") from error
    *parents, last = path.split(".")
    node: Any = settings
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_list_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, part, override)]
    child = node.get(part)
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise RecipeError(f"override {override!r}: {part} is a single value; name a field of a part")
    return child


def _list_index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(f"override {override!r}: {part} is not an index of a list of {len(node)}; count from 0")
    return int(part)


def _describe(problem: Any, model: type[BaseModel]) -> str:
    """One pydantic problem as text: field, problem, and the nearest known key."""
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _known_keys(model, location[:-1]), n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"unknown key {where}{hint}"
    if problem["type"] == "missing":
        return f"{where} is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Allowed keys at a location; descends the models by field name, through lists, unions and optional parts."""
    models = [model]
    for part in location:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [found for field in fields for found in models_of_field(field)]
        elif registered := [m for m in models if part in get_args(_kind_of(m))]:
            models = registered
    return [key for m in models for key in m.model_fields]


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return None if field is None else field.annotation


def models_of_field(field: FieldInfo) -> list[type[BaseModel]]:
    """The recipe parts that a field may hold, plug-ins included."""
    return _models_in((field.annotation, *field.metadata))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, tuple):
        return [found for one in annotation for found in _models_in(one)]
    if isinstance(annotation, PartOf):
        return annotation.classes()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return _models_in(get_args(annotation)) if get_args(annotation) else []


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def settings_of(part: BaseModel | None, exclude: set[str] | None = None) -> dict[str, Any]:
    """The fields of a recipe part that a step hash covers: those that differ from their defaults.

    Fields that the part names in `not_hashed`, and `exclude`, are left out.
    """
    if part is None:
        return {}
    not_hashed = set(getattr(part, "not_hashed", {}))
    return part.model_dump(mode="json", exclude_defaults=True, exclude=not_hashed | (exclude or set()))


def step_hash(
    step: str,
    version: int,
    settings: Mapping[str, Any],
    parents: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Hash of a step's result: 64 hex; folders use the first 8.

    Covers the step's `version` (raised when its output changes), settings that differ from their defaults, the hashes
    of its parents' manifests, and content fingerprints of its inputs (models, lists).
    """
    text = canonical_json(
        {
            "step": step,
            "version": version,
            "settings": settings,
            "parents": list(parents),
            "inputs": dict(inputs or {}),
        }
    )
    return hashlib.sha256(text.encode()).hexdigest()
