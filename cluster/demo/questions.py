"""Questions about the demo's pictures, and LLaVA conversations made of them.

Within one conversation no question or answer gives the answer of another one away, so that blind figures stay honest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.demo.drawings import COLOURS
from cluster.demo.pictures import NUMBER_WORDS, DrawnObject, Picture, generator

Kind = Literal["shape", "colour", "yes_no", "count"]
_KINDS: tuple[Kind, ...] = ("shape", "colour", "yes_no")
_KIND_WEIGHTS = (0.35, 0.35, 0.3)


@dataclass(frozen=True)
class Question:
    """One question about one picture and its answer, one word."""

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
    asked_questions.append(Question("count", "How many shapes are there?", NUMBER_WORDS[len(order)]))
    # Any kind may come first: a model that never saw a first question about colour cannot answer one alone.
    return [asked_questions[index] for index in draw.permutation(len(asked_questions))]


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
    return Question(kind, f"What {kind} is at the {asked.place}?", getattr(asked, kind))


def _question(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    kind = _KINDS[draw.choice(len(_KINDS), p=_KIND_WEIGHTS)]
    if kind == "yes_no":
        return _yes_no(picture, asked, draw)
    if kind == "shape" and not picture.alike and draw.random() < 0.5:
        return Question(kind, f"What shape is {asked.colour}?", asked.shape)
    return _by_place("shape" if kind == "shape" else "colour", asked)


def _yes_no(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    """Ask for the colour of an object that is there or, as often, for a colour that no object has."""
    present = {drawn.colour for drawn in picture.objects}
    colour = asked.colour
    if draw.random() < 0.5:
        absent = [name for name in COLOURS if name not in present]
        colour = absent[draw.integers(len(absent))]
    return Question("yes_no", f"Is there a {colour} shape?", "yes" if colour in present else "no")
