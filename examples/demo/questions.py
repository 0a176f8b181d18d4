"""Questions about the demo's pictures, and LLaVA conversations made of them.

A conversation holds one question: no answer gives another one away, and a small model learns to look places up sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pairloom.demo.drawings import COLOURS
from pairloom.demo.pictures import NUMBER_WORDS, DrawnObject, Picture, generator

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
    """Return questions about `picture`, each to be asked alone; another round asks others.

    Even rounds ask for the shape and the colour of every object by its place. Odd rounds ask one question an object,
    of any form. Where all objects are alike, one is asked about.
    """
    draw = generator("questions", picture.caption, picture.index, round_index)
    order = [picture.objects[index] for index in draw.permutation(len(picture.objects))]
    asked = order[:1] if picture.alike else order
    if round_index % 2:
        asked_questions = [_question(picture, drawn, draw) for drawn in asked]
    else:
        asked_questions = [_by_place(kind, drawn) for drawn in asked for kind in ("shape", "colour")]
    asked_questions.append(Question("count", "How many shapes are there?", NUMBER_WORDS[len(order)]))
    return [asked_questions[index] for index in draw.permutation(len(asked_questions))]


def llava_conversations(picture: Picture, image: str, num_rounds: int = 1) -> list[dict[str, Any]]:
    """Return a record in LLaVA's format for each question of `num_rounds` rounds; `image` is the file they refer to."""
    asked = [question for round_index in range(num_rounds) for question in questions(picture, round_index)]
    return [
        {
            "id": f"{picture.index}-{position}",
            "image": image,
            "conversations": [
                {"from": "human", "value": f"<image>\n{question.question}"},
                {"from": "gpt", "value": question.answer},
            ],
        }
        for position, question in enumerate(asked)
    ]


def _by_place(kind: Literal["shape", "colour"], asked: DrawnObject) -> Question:
    answer = asked.shape if kind == "shape" else asked.colour
    return Question(kind, f"What {kind} is at the {asked.place}?", answer)


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
