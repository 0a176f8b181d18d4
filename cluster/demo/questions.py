"""Questions about the demo's pictures, and LLaVA conversations made of them.

Within one conversation no question or answer gives the answer of another one away, so that blind figures stay honest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.demo.pictures import NUMBER_WORDS, PLACES, DrawnObject, Picture, generator

Kind = Literal["shape", "colour", "yes_no", "count"]
_KINDS: tuple[Kind, ...] = ("shape", "colour", "yes_no", "count")
_KIND_WEIGHTS = (0.4, 0.4, 0.1, 0.1)
_BY_COLOUR = 0.2  # of the questions for a shape, those that name it by its colour where colours differ


@dataclass(frozen=True)
class Question:
    """One question about one picture and its answer, one word."""

    kind: Kind
    question: str
    answer: str


def questions(picture: Picture, round_index: int = 0) -> list[Question]:
    """Return the two questions of one conversation about `picture`; another round asks others.

    They are of two kinds and about two objects, so that neither answer gives the other one away. A conversation is
    this short because a small model learns to look things up sooner when the text names few places.
    """
    draw = generator("questions", picture.caption, picture.index, round_index)
    kinds = draw.choice(len(_KINDS), 2, replace=False, p=_KIND_WEIGHTS)
    asked = draw.permutation(len(picture.objects))[:2]
    pairs = zip(kinds, asked, strict=True)
    return [_question(_KINDS[kind], picture, picture.objects[index], draw) for kind, index in pairs]


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


def _question(kind: Kind, picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    if kind == "count":
        return Question(kind, "How many shapes are there?", NUMBER_WORDS[len(picture.objects)])
    if kind == "yes_no":
        return _yes_no(picture, asked, draw)
    if kind == "shape" and not picture.alike and draw.random() < _BY_COLOUR:
        return Question(kind, f"What shape is {asked.colour}?", asked.shape)
    return Question(kind, f"What {kind} is at the {asked.place}?", asked.shape if kind == "shape" else asked.colour)


def _yes_no(picture: Picture, asked: DrawnObject, draw: np.random.Generator) -> Question:
    """Ask for a shape at the object's place or, as often where a place is empty, at an empty one."""
    empty = [place for place in PLACES if all(drawn.place != place for drawn in picture.objects)]
    if empty and draw.random() < 0.5:
        return Question("yes_no", f"Is there a shape at the {empty[draw.integers(len(empty))]}?", "no")
    return Question("yes_no", f"Is there a shape at the {asked.place}?", "yes")
