"""Labelled images from class folders, jsonl tables, WebDataset tars or parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.trainers.evaluate.class_names import DEFAULT_FILES, ClassFiles, load_class_names
from pairloom.trainers.evaluate.load import ImageSource
from pairloom.trainers.evaluate.samples import Sample, parquet_class_names, read_samples

IMAGE_SUFFIXES = tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, "ppm"))
LABEL_FIELDS = ("class", "cls", "label", "fine_label")


@dataclass(frozen=True)
class Classification:
    """Labelled images, class names and prompt templates."""

    images: Sequence[ImageSource]
    labels: torch.Tensor  # [N] int64, class indices
    keys: Sequence[str]  # class labels as they occur in the data
    class_names: Sequence[str]
    templates: Sequence[str]


def load_classification(data: str, files: ClassFiles = DEFAULT_FILES) -> Classification:
    """Load a folder with one folder per class, a jsonl of {image, class}, tars with `.cls`, or parquet with `label`.

    Names and templates come from `files`, else from classes.json (classnames.txt, templates.txt) next to the images or
    from the parquet metadata. A class without a name is called by its label. Raises InputError when there are no
    images, a sample has no class, or a class is not among the names.
    """
    is_file = data.endswith((".jsonl", ".tar", ".parquet"))
    given = load_class_names(files, data.rstrip("/").rpartition("/")[0] or "." if is_file else data)
    samples = read_samples(data)
    if samples:
        pairs = [(sample.image, _label_of(sample)) for sample in samples]
        names = given.names or parquet_class_names(data)
    else:
        pairs = _from_folders(data, list(given.names))
        names = given.names
    names = names or {key: key for key in sorted({key for _, key in pairs}, key=_in_order)}
    index = {key: position for position, key in enumerate(names)}
    unknown = sorted({key for _, key in pairs} - set(names))
    if unknown:
        raise InputError(f"{data}: class {unknown[0]!r} is not among the {len(names)} names of classes")
    labels = torch.tensor([index[key] for _, key in pairs])
    return Classification([image for image, _ in pairs], labels, list(names), list(names.values()), given.templates)


def _in_order(key: str) -> tuple[int, str]:
    """Sort key: labels that are numbers sort by value."""
    return (int(key), key) if key.isdigit() else (0, key)


def _label_of(sample: Sample) -> str:
    value = next((sample.fields[name] for name in LABEL_FIELDS if sample.fields.get(name) is not None), None)
    if not isinstance(value, str | int):
        raise InputError(f"{sample.image.url}: a sample has no class; name it {' or '.join(LABEL_FIELDS)}")
    return str(value)


def _from_folders(data: str, keys: Sequence[str]) -> list[tuple[ImageSource, str]]:
    """(image, class label) pairs from the class folders `keys`, or from every folder if `keys` is empty."""
    folders = keys or [storage.name_of(url.rstrip("/")) for url in storage.list_files(data)]
    pairs = [
        (ImageSource(url), key)
        for key in folders
        for url in storage.list_files(storage.join(data, key))
        if url.lower().endswith(IMAGE_SUFFIXES)
    ]
    if not pairs:
        shown = ", ".join(folders[:3]) or "none"
        raise InputError(f"{data}: no images in folders of classes ({shown}), and no tars or parquet files with images")
    return pairs
