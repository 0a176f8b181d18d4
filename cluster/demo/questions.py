"""Questions about the demo's pictures, and LLaVA conversations made of them.

Within one conversation no question or answer gives the answer of another one away, so that blind figures stay honest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.demo.drawings import SHAPES
from cluster.demo.pictures import CLASS_NAMES, NUMBER_WORDS, DrawnObject, Picture, generator

Kind = Literal["shape", "colour", "yes_no", "place", "count"]
_KINDS: tuple[Kind, ...] = ("shape", "colour", "yes_no", "place")
_KIND_WEIGHTS = (0.35, 0.35, 0.2, 0.1)


@dataclass(frozen=True)
class Question:
    """One question about one picture and its answer, a word or a place."""

    kind: Kind
    question: str
    answer: str


def questions(picture: Picture, round_index: int = 0) -> list[Question]:
    """Return the questions of one conversation about `picture`, in random order; another round asks others.

    Even rounds name objects by their places only and ask for the shape and the colour of all. Odd rounds ask one
    question an object, which may name it by its colour or shape: no answer gives another one away.
    Where all objects are alike, one is asked about.
    """
    draw = generator("questions", picture.caption, picture.index, round_index)
    order = [picture.objects[index] for index in draw.permutation(len(picture.objects))]
    asked = order[:1] if picture.alike else order
    if round_index % 2:
        asked_questions = [_question(picture, drawn, draw) for drawn in asked]
    else:
        asked_questions = [_by_place(kind, drawn) for drawn in asked for kind in ("shape", "colour")]
        asked_questions = [asked_questions[index] for index in draw.permutation(len(asked_questions))]
    counted = Question("count", "How many shapes are there?", NUMBER_WORDS[len(order)])
    return [counted, *asked_questions]


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


def _by_place(kind: Literal["shape", "colour"], asked: DrawnObject) -> Question:
    if kind == "shape":
        return Question(kind, f"What shape is at the {asked.place}?", asked.shape)
    return Question(kind, f"What colour is the shape at the {asked.place}?", asked.colour)


def _question(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    kind = _KINDS[draw.choice(len(_KINDS), p=_KIND_WEIGHTS)]
    if kind == "yes_no" or (kind == "place" and picture.alike):
        return _yes_no(picture, asked, draw)
    if kind == "place":
        return Question(kind, f"Where is the {asked.name}?", f"at the {asked.place}")
    if kind == "shape" and not picture.alike:
        return Question(kind, f"What shape is the {asked.colour} object?", asked.shape)
    if kind == "colour" and sum(drawn.shape == asked.shape for drawn in picture.objects) == 1:
        return Question(kind, f"What colour is the {asked.shape}?", asked.colour)
    return _by_place("shape" if kind == "shape" else "colour", asked)


def _yes_no(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    """Ask for an object that is there, or (as often) for one of another shape or another class altogether."""
    present = {drawn.name for drawn in picture.objects}
    name = asked.name
    if draw.random() < 0.5:
        near = [f"{asked.colour} {shape}" for shape in SHAPES]
        absent = [name for name in (near if draw.random() < 0.5 else CLASS_NAMES) if name not in present]
        name = absent[draw.integers(len(absent))]
    return Question("yes_no", f"Is there a {name}?", "yes" if name in present else "no")
