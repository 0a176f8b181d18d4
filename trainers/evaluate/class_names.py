"""Class names and prompt templates of zero-shot classification."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

DEFAULT_TEMPLATES = ("a photo of a {}.",)
CLASS_FILES = ("classes.json", "classnames.txt")
TEMPLATE_FILES = ("templates.txt", "zeroshot_classification_templates.txt")


@dataclass(frozen=True)
class ClassFiles:
    """Paths of class names and templates; None: use the files next to the data."""

    classes: str | None = None  # .json: {label: name}, [name, ...] or {classes, templates}; else: one name per line
    templates: str | None = None  # .json: [template, ...]; else: one per line; `{}` or `{c}` stands for the name


DEFAULT_FILES = ClassFiles()


@dataclass(frozen=True)
class ClassNames:
    """Class names by label in class order (empty if there are none), and templates."""

    names: Mapping[str, str]
    templates: Sequence[str]


def load_class_names(files: ClassFiles, folder: str) -> ClassNames:
    """Load names and templates from `files`, or else from the default files in `folder`.

    Raises InputError when a given file is missing or malformed.
    """
    classes = files.classes or _first(folder, CLASS_FILES)
    names, own_templates = _read_classes(classes) if classes else ({}, None)
    path = files.templates or (None if own_templates else _first(folder, TEMPLATE_FILES))
    templates = _read_templates(path) if path else own_templates
    return ClassNames(names, _checked(DEFAULT_TEMPLATES if templates is None else templates, path or classes))


def _first(folder: str, names: Sequence[str]) -> str | None:
    urls = (storage.join(folder, name) for name in names)
    return next((url for url in urls if storage.exists(url)), None)


def _read_classes(url: str) -> tuple[dict[str, str], Any]:
    """Names by label, and the templates if the file also has them."""
    content = _read(url)
    templates = None
    if isinstance(content, Mapping) and isinstance(content.get("classes"), Mapping | list):
        templates = content.get("templates")
        content = content["classes"]
    if isinstance(content, list):
        content = {str(index): name for index, name in enumerate(content)}
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content.values()):
        raise InputError(f"{url}: must be {{label: class name}}, [class name, ...] or {{classes: ..., templates: ...}}")
    return dict(content), templates


def _read_templates(url: str) -> Any:
    content = _read(url)
    if isinstance(content, list):
        return [text.replace("{c}", "{}") if isinstance(text, str) else text for text in content]
    return content


def _read(url: str) -> Any:
    """The value of a JSON file, or the lines of any other file. Raises InputError."""
    text = storage.read_input(url)
    if not url.endswith(".json"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}") from error


def _checked(templates: Any, where: str | None) -> tuple[str, ...]:
    is_list = isinstance(templates, Sequence) and not isinstance(templates, str) and len(templates) > 0
    if not is_list or not all(isinstance(text, str) and "{}" in text for text in templates):
        raise InputError(f"{where}: every template needs {{}} where the class name goes")
    return tuple(templates)
