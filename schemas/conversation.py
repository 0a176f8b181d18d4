"""LLaVA conversations: `{"id", "image", "conversations": [{"from": "human"|"gpt", "value"}]}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

IMAGE_MARK = "<image>"
_ROLES: dict[str, Literal["user", "assistant"]] = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Conversation:
    """Alternating turns, user first; `image` is the file name of the image that `<image>` stands for."""

    id: str
    image: str | None
    turns: tuple[Turn, ...]


def parse_conversation(record: Mapping[str, Any], where: str) -> Conversation:
    """Parse one record in LLaVA's format; `where` names its file in errors.

    Raises InputError when turns do not alternate or `<image>` is not exactly once in the first turn of a record with an
    image.
    """
    label = f"{where}: conversation {record.get('id', '(without id)')}"
    values = record.get("conversations")
    if not isinstance(values, list) or not values or len(values) % 2:
        raise InputError(f"{label}: needs an even number of turns, human first")
    turns = []
    for index, value in enumerate(values):
        expected = "human" if index % 2 == 0 else "gpt"
        if value.get("from") != expected or not isinstance(value.get("value"), str):
            raise InputError(f"{label}: turn {index} must be {{from: {expected}, value: text}}")
        turns.append(Turn(_ROLES[expected], value["value"]))
    num_marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    image = record.get("image")
    if num_marks != (1 if image else 0) or (image and IMAGE_MARK not in turns[0].text):
        raise InputError(f"{label}: one {IMAGE_MARK} in the first turn for one image; found {num_marks}")
    return Conversation(str(record.get("id", "")), image, tuple(turns))


def load_conversations(path: str) -> list[Conversation]:
    """Load a `.json` file (one list) or a `.jsonl` file (one conversation per line).

    Raises InputError when the file is missing, empty or not valid.
    """
    try:
        text = storage.read_text(path)
        if path.endswith(".jsonl"):
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of conversations") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise InputError(f"{path}: holds no conversations")
    return [parse_conversation(record, path) for record in records]
