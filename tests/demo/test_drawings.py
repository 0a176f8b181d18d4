"""The demo's pictures and questions: the same in every run, free of contradictions, with answers that are right."""

from __future__ import annotations

import collections
import re
import sys

import numpy as np
import pytest

from pairloom.demo.drawings import derive_facts, load_drawings
from pairloom.demo.pictures import CLASS_NAMES, PLACES, DrawnObject, Picture, class_name, compose
from pairloom.demo.questions import Question, llava_conversations, questions
from pairloom.schemas.errors import InputError

NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return list(compose(200, seed=0))


def test_images_are_a_function_of_seed_and_index(pictures: list[Picture]) -> None:
    for first, again in zip(pictures[:20], compose(20, seed=0), strict=True):
        assert np.array_equal(first.image, again.image)
        assert (first.caption, first.objects) == (again.caption, again.objects)
    other = next(compose(1, seed=1))
    assert not np.array_equal(other.image, pictures[0].image)


def test_images_are_rgb_with_different_captions(pictures: list[Picture]) -> None:
    assert all(picture.image.shape == (256, 256, 3) and picture.image.dtype == np.uint8 for picture in pictures)
    assert len({picture.caption for picture in pictures}) > 180


def test_a_drawn_object_has_its_colour_in_its_corner(pictures: list[Picture]) -> None:
    levels = {"red": (255, 0, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "yellow": (255, 255, 0)}
    for picture in pictures:
        for drawn in picture.objects:
            row, column = divmod(PLACES.index(drawn.place), 2)
            corner = picture.image[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            if drawn.colour in levels:
                near = np.abs(corner.astype(int) - levels[drawn.colour]).max(axis=2) < 40
                assert near.sum() > 200


def test_captions_name_every_object_and_place(pictures: list[Picture]) -> None:
    for picture in pictures:
        for drawn in picture.objects:
            assert drawn.name in picture.caption
            assert drawn.place in picture.caption


def test_zero_shot_images_have_one_class() -> None:
    names = {class_name(picture) for picture in compose(150, seed=2, split="test", layout="alike")}
    assert names <= set(CLASS_NAMES)
    assert len(names) > 20


def test_answers_fit_the_image(pictures: list[Picture]) -> None:
    asked = _asked(pictures, num_rounds=2)
    assert all(_is_right(picture, question) for picture, question in asked)
    assert {question.kind for _, question in asked} == {"shape", "colour", "yes_no", "count"}


def test_most_questions_ask_for_shape_or_colour(pictures: list[Picture]) -> None:
    kinds = collections.Counter(question.kind for _, question in _asked(pictures, num_rounds=4))
    assert kinds["shape"] + kinds["colour"] > 0.6 * kinds.total()


def test_shape_and_colour_cannot_be_guessed_from_the_question() -> None:
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _, question in _asked(list(compose(600, seed=3)), num_rounds=2):
        answers[question.kind][question.answer] += 1
    assert _largest_share(answers["shape"]) < 0.45
    assert _largest_share(answers["colour"]) < 0.25
    assert _largest_share(answers["yes_no"]) < 0.65


def test_conversations_are_llava_records_of_one_question(pictures: list[Picture]) -> None:
    records = llava_conversations(pictures[0], "images/000000.jpg", num_rounds=2)
    asked = questions(pictures[0], 0) + questions(pictures[0], 1)
    assert [record["id"] for record in records] == [f"0-{index}" for index in range(len(asked))]
    for record, question in zip(records, asked, strict=True):
        human, gpt = record["conversations"]
        assert human == {"from": "human", "value": f"<image>\n{question.question}"}
        assert gpt == {"from": "gpt", "value": question.answer}


def test_facts_come_from_what_questions_only() -> None:
    rows = [
        ("what color is the circle?", "red", 7),
        ("is no red shape present?", "no", 7),
        ("is there a box?", "no", 8),
    ]
    assert derive_facts(rows) == {7: ("circle", "red")}


def test_contradicting_facts_are_an_error() -> None:
    with pytest.raises(InputError, match="image 7 contradict"):
        derive_facts([("what color is the circle?", "red", 7), ("what shape is present?", "triangle", 7)])


def test_missing_package_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    load_drawings.cache_clear()
    with pytest.raises(InputError, match="pip install easy-vqa"):
        load_drawings("train")


def _asked(pictures: list[Picture], num_rounds: int) -> list[tuple[Picture, Question]]:
    turns = [(picture, turn) for picture in pictures for turn in range(num_rounds)]
    return [(picture, asked) for picture, turn in turns for asked in questions(picture, turn)]


def _largest_share(answers: collections.Counter[str]) -> float:
    return max(answers.values()) / sum(answers.values())


def _named(picture: Picture, asked: Question) -> list[DrawnObject]:
    """Return the objects that the question names by place or by colour."""
    words = set(re.findall(r"\w+", asked.question))
    return [drawn for drawn in picture.objects if drawn.place in asked.question or drawn.colour in words]


def _is_right(picture: Picture, asked: Question) -> bool:
    """Answer the question from the picture's objects alone, by its words."""
    named = _named(picture, asked)
    if asked.kind == "count":
        return len(picture.objects) == NUMBERS[asked.answer]
    if asked.kind == "yes_no":
        return bool(named) == (asked.answer == "yes")
    return {getattr(drawn, asked.kind) for drawn in named} == {asked.answer}
