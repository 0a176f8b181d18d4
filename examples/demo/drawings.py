"""The drawings of the PyPI package `easy-vqa`: one coloured shape each, and what is known about it.

Facts come from what-questions only: "what color is the circle?" -> "red" says both colour and shape. The yes/no
questions negate with "not" and with "no" ("is no red shape present?"), so nothing is taken from them.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pairloom.schemas.errors import InputError

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
Split = Literal["train", "test"]
_BACKGROUND_TOLERANCE = 24  # levels; the drawings' edges are smoothed


@dataclass(frozen=True)
class Drawing:
    """One shape, cut out of its image: `pixels` [H, W, 3] uint8 RGB and `mask` [H, W] float32 in 0..1."""

    shape: str
    colour: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.float32]


@functools.cache
def load_drawings(split: Split) -> tuple[Drawing, ...]:
    """Return the drawings whose shape and colour are both known, in the order of their image numbers.

    Raises `InputError` if `easy-vqa` is not installed or its questions contradict each other.
    """
    package = _import_easy_vqa()
    questions, answers, image_ids = getattr(package, f"get_{split}_questions")()
    paths: dict[int, str] = getattr(package, f"get_{split}_image_paths")()
    facts = derive_facts(zip(questions, answers, image_ids, strict=True))
    return tuple(_cut_out(paths[image_id], *facts[image_id]) for image_id in sorted(paths) if image_id in facts)


def derive_facts(rows: Iterable[tuple[str, str, int]]) -> dict[int, tuple[str, str]]:
    """Return {image id: (shape, colour)} of every image with both known, from (question, answer, image id) rows.

    Raises `InputError` if two questions about one image contradict each other.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for question, answer, image_id in rows:
        words = question.rstrip("?").split()
        if words[0] in ("what", "which"):
            found[image_id].update({answer, *words} & {*SHAPES, *COLOURS})
    facts = {}
    for image_id, words_of_image in found.items():
        shapes = words_of_image & set(SHAPES)
        colours = words_of_image & set(COLOURS)
        if len(shapes) > 1 or len(colours) > 1:
            raise InputError(
                f"easy-vqa: questions about image {image_id} contradict each other:"
                f" {sorted(words_of_image)}; reinstall easy-vqa==1.0"
            )
        if shapes and colours:
            facts[image_id] = (shapes.pop(), colours.pop())
    return facts


def _import_easy_vqa() -> Any:
    try:
        return importlib.import_module("easy_vqa")
    except ModuleNotFoundError as error:
        raise InputError("the demo's drawings are missing: run `pip install easy-vqa==1.0`") from error


def _cut_out(path: str, shape: str, colour: str) -> Drawing:
    import cv2

    image = cv2.imread(path)
    if image is None:
        raise InputError(f"easy-vqa: cannot read {path}; reinstall easy-vqa==1.0")
    pixels = image[:, :, ::-1]
    packed = pixels.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    colours, counts = np.unique(packed, return_counts=True)
    background = pixels.reshape(-1, 3)[packed == colours[counts.argmax()]][0].astype(np.int16)
    mask = np.abs(pixels - background).max(axis=2) > _BACKGROUND_TOLERANCE
    rows, columns = np.nonzero(mask)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Drawing(shape, colour, np.ascontiguousarray(pixels[box], np.uint8), mask[box].astype(np.float32))
