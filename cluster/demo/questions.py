"""Questions about the demo's pictures, and LLaVA conversations made of them.

Each object of a picture is asked about once a round, so no answer of a conversation gives another one away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.demo.drawings import SHAPES
from cluster.demo.pictures import CLASS_NAMES, DrawnObject, Picture, generator, where

Kind = Literal["shape", "colour", "yes_no", "place", "count"]
_KINDS: tuple[Kind, ...] = ("shape", "colour", "yes_no", "place")
_KIND_WEIGHTS = (0.35, 0.35, 0.2, 0.1)
_NUMBER_WORDS = ("zero", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """One question about one picture and its answer, a word or a place."""

    kind: Kind
    question: str
    answer: str


def questions(picture: Picture, round_index: int = 0) -> list[Question]:
    """Return the count, then one question about each object in random order; another round asks others."""
    draw = generator("questions", picture.caption, picture.index, round_index)
    counted = Question("count", "How many shapes are there?", _NUMBER_WORDS[len(picture.objects)])
    order = draw.permutation(len(picture.objects))
    return [counted] + [_question(picture, picture.objects[i], draw) for i in order]


def llava_conversations(picture: Picture, image: str, num_rounds: int = 1) -> list[dict[str, Any]]:
    """Return `num_rounds` records in LLaVA's format; `image` is the file name that they refer to."""
    records = []
    for round_index in range(num_rounds):
        turns = []
        for question in questions(picture, round_index):
            turns.append({"from": "human", "value": question.question})
            turns.append({"from": "gpt", "value": question.answer})
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        records.append({"id": f"{picture.index}-{round_index}", "image": image, "conversations": turns})
    return records


def _question(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    kind = _KINDS[draw.choice(len(_KINDS), p=_KIND_WEIGHTS)]
    if kind == "yes_no":
        return _yes_no(picture, asked, draw)
    if kind == "place":
        return Question(kind, f"Where is the {asked.name}?", where(asked.place))
    by_place = draw.random() < 0.5
    if kind == "shape":
        text = f"is {where(asked.place)}" if by_place else f"is the {asked.colour} object"
        return Question(kind, f"What shape {text}?", asked.shape)
    unique = sum(drawn.shape == asked.shape for drawn in picture.objects) == 1
    text = f"the {asked.shape}" if unique and not by_place else f"the shape {where(asked.place)}"
    return Question(kind, f"What colour is {text}?", asked.colour)


def _yes_no(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    """Ask for an object that is there, or (as often) for one of another shape or another colour."""
    present = {drawn.name for drawn in picture.objects}
    name = asked.name
    if draw.random() < 0.5:
        near = [f"{asked.colour} {shape}" for shape in SHAPES]
        absent = [n for n in (near if draw.random() < 0.5 else CLASS_NAMES) if n not in present]
        name = absent[draw.integers(len(absent))]
    return Question("yes_no", f"Is there a {name}?", "yes" if name in present else "no")
