"""The held-out sets of the demo: pictures of drawings that no training picture shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pairloom.demo.pictures import CLASS_NAMES, CLASS_TEMPLATES, Picture, class_name, compose
from pairloom.demo.questions import questions
from pairloom.demo.source import encode_jpeg
from pairloom.schemas.storage import storage

NUM_QUESTION_ROUNDS = 2  # the second one asks yes or no as well
NUM_PICTURES = 500  # each, for classes and for captions and questions
CLASS_SEED, CAPTION_SEED = 1001, 1002


def build_held_out(folder: Path) -> None:
    """Write classes/ (zero-shot), pairs.jsonl (retrieval) and vqa.jsonl with their images, unless they are there."""
    if (folder / "vqa.jsonl").exists():
        return
    _write_classes(folder / "classes")
    pictures = list(compose(NUM_PICTURES, CAPTION_SEED, split="test"))
    images = [_write_image(folder / "images", picture) for picture in pictures]
    pairs = zip(images, pictures, strict=True)
    _write_lines(
        folder / "pairs.jsonl",
        ({"image": f"images/{image}", "captions": [picture.caption]} for image, picture in pairs),
    )
    _write_lines(
        folder / "vqa.jsonl",
        (
            {"image": f"images/{image}", "question": q.question, "answer": q.answer, "kind": q.kind}
            for image, picture in zip(images, pictures, strict=True)
            for round_index in range(NUM_QUESTION_ROUNDS)
            for q in questions(picture, round_index)
        ),
    )


def _write_classes(folder: Path) -> None:
    for picture in compose(NUM_PICTURES, CLASS_SEED, split="test", layout="alike"):
        _write_image(folder / class_name(picture).replace(" ", "_"), picture)
    names = {name.replace(" ", "_"): name for name in CLASS_NAMES}
    settings = {"classes": names, "templates": list(CLASS_TEMPLATES)}
    storage.put_bytes(str(folder / "classes.json"), json.dumps(settings, indent=1).encode())


def _write_image(folder: Path, picture: Picture) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{picture.index:06d}.jpg"
    (folder / name).write_bytes(encode_jpeg(picture))
    return name


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    storage.put_bytes(str(path), text.encode())
