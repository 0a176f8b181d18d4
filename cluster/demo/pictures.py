"""The pictures of `pairloom demo`: several drawings of easy-vqa on one canvas, with a caption of the layout.

A picture is a pure function of (seed, split, index), so that a second run composes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.demo.drawings import COLOURS, SHAPES, Drawing, Split, load_drawings

CANVAS = 256  # pixels a side
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MIDDLE = "middle"
Layout = Literal["corners", "dominant"]
_DOMINANT_FRACTION = 0.25
_CORNER_SIDE = (64, 108)  # pixels, smallest and largest longer side of a drawing
_SMALL_CORNER_SIDE = (44, 56)  # beside a dominant drawing
_DOMINANT_SIDE = (110, 144)

CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CLASS_TEMPLATES = (
    "A large {} in the middle.",
    "A picture of a large {} in the middle.",
    "There is a large {} in the middle.",
)


@dataclass(frozen=True)
class DrawnObject:
    """One drawing of a picture; `place` is one of `CORNERS` or `MIDDLE`."""

    shape: str
    colour: str
    place: str

    @property
    def name(self) -> str:
        """Colour and shape, one of `CLASS_NAMES`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Picture:
    """One composed picture: `image` [256, 256, 3] uint8 RGB; no two of its objects share a colour."""

    index: int
    image: NDArray[np.uint8]
    caption: str
    objects: tuple[DrawnObject, ...]


def compose(num_pictures: int, seed: int, split: Split = "train", layout: Layout | None = None) -> Iterator[Picture]:
    """Yield pictures 0 .. num_pictures - 1; `layout` None mixes both, and `split` keeps drawings apart."""
    drawings = load_drawings(split)
    for index in range(num_pictures):
        draw = generator(seed, split, layout, index)
        dominant = layout == "dominant" or (layout is None and draw.random() < _DOMINANT_FRACTION)
        chosen, places = _choose(drawings, dominant, draw)
        objects = tuple(
            DrawnObject(drawing.shape, drawing.colour, place) for drawing, place in zip(chosen, places, strict=True)
        )
        image = _paint(chosen, places, draw)
        yield Picture(index, image, _caption(objects, draw), objects)


def class_name(picture: Picture) -> str:
    """Return the class of a picture of layout "dominant": the name of its large object in the middle."""
    (name,) = (drawn.name for drawn in picture.objects if drawn.place == MIDDLE)
    return name


def generator(*parts: object) -> np.random.Generator:
    """Return random draws that are a function of `parts` only."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _choose(drawings: Sequence[Drawing], dominant: bool, draw: np.random.Generator) -> tuple[list[Drawing], list[str]]:
    num_objects = int(draw.integers(2, 4))
    chosen: list[Drawing] = []
    while len(chosen) < num_objects:
        drawing = drawings[draw.integers(len(drawings))]
        if all(drawing.colour != other.colour for other in chosen):
            chosen.append(drawing)
    corners = [CORNERS[i] for i in draw.permutation(4)[:num_objects]]
    return chosen, [MIDDLE, *corners[1:]] if dominant else corners


def _paint(chosen: Sequence[Drawing], places: Sequence[str], draw: np.random.Generator) -> NDArray[np.uint8]:
    canvas = _background(draw)
    small = MIDDLE in places
    for drawing, place in zip(chosen, places, strict=True):
        if place == MIDDLE:
            side, low, high = draw.integers(*_DOMINANT_SIDE), (44, 44), (212, 212)
        else:
            row, column = divmod(CORNERS.index(place), 2)
            side = draw.integers(*(_SMALL_CORNER_SIDE if small else _CORNER_SIDE))
            cell = 60 if small else 124
            low = (row * (CANVAS - cell), column * (CANVAS - cell))
            high = (low[0] + cell, low[1] + cell)
        _paste(canvas, drawing, int(side), low, high, draw)
    return np.rint(canvas).astype(np.uint8)


def _background(draw: np.random.Generator) -> NDArray[np.float32]:
    """Return a light gradient between two tints: [H, W, 3] float32 in 0..255."""
    tints = draw.uniform(190, 255, (2, 3)).astype(np.float32)
    angle = draw.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32) / np.float32(np.sqrt(2))
    across, down = np.float32(np.cos(angle)) * axis, np.float32(np.sin(angle)) * axis
    weight_HW1 = (across[None, :] + down[:, None] + np.float32(0.5))[:, :, None]
    return np.asarray(tints[1] + (tints[0] - tints[1]) * weight_HW1, np.float32)


def _paste(
    canvas: NDArray[np.float32],
    drawing: Drawing,
    side: int,
    low: tuple[int, int],
    high: tuple[int, int],
    draw: np.random.Generator,
) -> None:
    """Paint `drawing` with its longer side `side` somewhere inside the box `low`..`high` (row, column)."""
    height, width = drawing.mask.shape
    scale = side / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    top = low[0] + int(draw.integers(high[0] - low[0] - height + 1))
    left = low[1] + int(draw.integers(high[1] - low[1] - width + 1))
    pixels = cv2.resize(drawing.pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(drawing.mask, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    box = canvas[top : top + height, left : left + width]
    box += mask * (pixels - box)


def _caption(objects: Sequence[DrawnObject], draw: np.random.Generator) -> str:
    order = [objects[i] for i in draw.permutation(len(objects))]
    names = [f"a large {o.name}" if o.place == MIDDLE else f"a {o.name}" for o in order]
    wheres = [where(o.place) for o in order]
    here = [f"{name} {place}" for name, place in zip(names, wheres, strict=True)]
    there = [f"{place} {name}" for name, place in zip(names, wheres, strict=True)]
    number = {2: "Two", 3: "Three"}[len(order)]
    templates = (
        _sentence(_listed(here)),
        f"A picture of {_listed(here)}.",
        f"There is {_listed(here)}.",
        f"{number} shapes: {_listed(here)}.",
        _sentence(f"{wheres[0]} there is {names[0]}, {_listed(there[1:])}"),
    )
    return templates[draw.integers(len(templates))]


def where(place: str) -> str:
    """Return a place as the captions and answers say it."""
    return "in the middle" if place == MIDDLE else f"at the {place}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
