"""The pictures of `pairloom demo`: several drawings of easy-vqa on one canvas, with a caption of the layout.

A picture is a pure function of (seed, split, layout, index), so that a second run composes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pairloom.demo.drawings import COLOURS, SHAPES, Drawing, Split, load_drawings

CANVAS = 256  # pixels a side
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBER_WORDS = ("zero", "one", "two", "three", "four")
Layout = Literal["mixed", "alike"]  # objects of different colours | all objects of one class
_ALIKE_FRACTION = 0.4
_SIDE = (96, 121)  # pixels, smallest and largest longer side of a drawing
_CELL = 124  # pixels, side of the box in a corner that a drawing stays in

# Zero-shot accuracy is measured on held-out pictures of layout "alike"; their captions name one of these classes.
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CLASS_TEMPLATES = (
    "Two {}s at the top left and at the bottom right.",
    "A picture of three {}s at the top left, at the top right and at the bottom left.",
    "Four {}s at the top left, at the top right, at the bottom left and at the bottom right.",
)


@dataclass(frozen=True)
class DrawnObject:
    """One drawing of a picture; `place` is one of `PLACES`."""

    shape: str
    colour: str
    place: str

    @property
    def name(self) -> str:
        """Colour and shape, one of `CLASS_NAMES`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Picture:
    """One composed picture: `image` is [256, 256, 3] uint8 RGB, colours of the objects all differ or all agree."""

    index: int
    image: NDArray[np.uint8]
    caption: str
    objects: tuple[DrawnObject, ...]

    @property
    def alike(self) -> bool:
        """Whether all objects are of one class."""
        return len({drawn.name for drawn in self.objects}) == 1


def compose(num_pictures: int, seed: int, split: Split = "train", layout: Layout | None = None) -> Iterator[Picture]:
    """Yield pictures 0 .. num_pictures - 1; `layout` None mixes both; the splits share no drawing."""
    drawings = load_drawings(split)
    for index in range(num_pictures):
        draw = generator(seed, split, layout, index)
        alike = layout == "alike" or (layout is None and draw.random() < _ALIKE_FRACTION)
        chosen = _choose_alike(drawings, draw) if alike else _choose_mixed(drawings, draw)
        places = [PLACES[place] for place in draw.permutation(len(PLACES))[: len(chosen)]]
        objects = tuple(
            DrawnObject(drawing.shape, drawing.colour, place) for drawing, place in zip(chosen, places, strict=True)
        )
        image = _paint(chosen, places, draw)
        caption = _caption_alike(objects, draw) if alike else _caption_mixed(objects, draw)
        yield Picture(index, image, caption, objects)


def class_name(picture: Picture) -> str:
    """Return the zero-shot class of a picture of layout "alike", one of `CLASS_NAMES`."""
    (name,) = {drawn.name for drawn in picture.objects}
    return name


def generator(*parts: object) -> np.random.Generator:
    """Return random draws that are a function of `parts` only."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _choose_mixed(drawings: Sequence[Drawing], draw: np.random.Generator) -> list[Drawing]:
    num_objects = int(draw.integers(2, 4))
    chosen: list[Drawing] = []
    while len(chosen) < num_objects:
        drawing = drawings[int(draw.integers(len(drawings)))]
        if all(drawing.colour != other.colour for other in chosen):
            chosen.append(drawing)
    return chosen


def _choose_alike(drawings: Sequence[Drawing], draw: np.random.Generator) -> list[Drawing]:
    first = drawings[int(draw.integers(len(drawings)))]
    same = [drawing for drawing in drawings if (drawing.shape, drawing.colour) == (first.shape, first.colour)]
    return [same[index] for index in draw.choice(len(same), int(draw.integers(2, 5)), replace=False)]


def _paint(chosen: Sequence[Drawing], places: Sequence[str], draw: np.random.Generator) -> NDArray[np.uint8]:
    canvas = _background(draw)
    for drawing, place in zip(chosen, places, strict=True):
        row, column = divmod(PLACES.index(place), 2)
        top, left = row * (CANVAS - _CELL), column * (CANVAS - _CELL)
        _paste(canvas[top : top + _CELL, left : left + _CELL], drawing, draw)
    return np.rint(canvas).astype(np.uint8)


def _background(draw: np.random.Generator) -> NDArray[np.float32]:
    """Return a light gradient between two tints: [H, W, 3] float32 in 0..255."""
    tints = draw.uniform(190, 255, (2, 3)).astype(np.float32)
    angle = draw.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32) / np.float32(np.sqrt(2))
    across, down = np.float32(np.cos(angle)) * axis, np.float32(np.sin(angle)) * axis
    weight_HW1 = (across[None, :] + down[:, None] + np.float32(0.5))[:, :, None]
    return np.asarray(tints[1] + (tints[0] - tints[1]) * weight_HW1, np.float32)


def _paste(box: NDArray[np.float32], drawing: Drawing, draw: np.random.Generator) -> None:
    """Paint `drawing` at a random size somewhere inside `box`, a view of the canvas."""
    height, width = drawing.mask.shape
    scale = int(draw.integers(*_SIDE)) / max(height, width)
    height, width = round(height * scale), round(width * scale)
    top = int(draw.integers(box.shape[0] - height + 1))
    left = int(draw.integers(box.shape[1] - width + 1))
    pixels = cv2.resize(drawing.pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(drawing.mask, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    covered = box[top : top + height, left : left + width]
    covered += mask * (pixels - covered)


def _caption_mixed(objects: Sequence[DrawnObject], draw: np.random.Generator) -> str:
    order = [objects[index] for index in draw.permutation(len(objects))]
    here = _listed([f"a {drawn.name} at the {drawn.place}" for drawn in order])
    there = _listed([f"at the {drawn.place} a {drawn.name}" for drawn in order])
    templates = (
        f"{_capital(here)}.",
        f"A picture of {here}.",
        f"There is {here}.",
        f"{_capital(NUMBER_WORDS[len(order)])} shapes: {here}.",
        f"{_capital(there)}.",
    )
    return templates[draw.integers(len(templates))]


def _caption_alike(objects: Sequence[DrawnObject], draw: np.random.Generator) -> str:
    name = f"{NUMBER_WORDS[len(objects)]} {objects[0].name}s"
    order = [objects[index] for index in draw.permutation(len(objects))]
    places = _listed([f"at the {drawn.place}" for drawn in order])
    templates = (
        f"{_capital(name)} {places}.",
        f"A picture of {name} {places}.",
        f"There are {name} {places}.",
        f"{_capital(places)} there are {name}.",
    )
    return templates[draw.integers(len(templates))]


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
